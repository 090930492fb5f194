"""8-bit AdamW whose states may leave the device. Source: Dettmers et al. 2023, section 3."""

from typing import ClassVar, Literal

from dialoop.train.bitsandbytes import EightBit


class PagedAdamW8bit(EightBit, frozen=True):
    """8-bit AdamW whose states move to the host when the device is full; CUDA and XPU."""

    kind: Literal["paged_adamw_8bit"] = "paged_adamw_8bit"

    devices: ClassVar = ("cuda", "xpu")
    is_paged: ClassVar = True
