"""AdamW with states in 8 bits. Source: Dettmers et al. 2021, arXiv:2110.02861."""

from typing import ClassVar, Literal

from dialoop.train.bitsandbytes import EightBit


class AdamW8bit(EightBit, frozen=True):
    """AdamW with states in 8 bits, a quarter of the memory; needs bitsandbytes."""

    kind: Literal["adamw_8bit"] = "adamw_8bit"

    devices: ClassVar = ("cpu", "cuda", "xpu")
