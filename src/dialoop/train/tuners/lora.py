"""Low-rank adapters on a frozen base. Source: Hu et al. 2021, arXiv:2106.09685."""

from typing import Literal

from dialoop.train.adapter import Adapter


class Lora(Adapter, frozen=True):
    """Train low-rank updates of the linear layers."""

    kind: Literal["lora"] = "lora"
