"""Low-rank direction and learned length of each weight row. Source: arXiv:2402.09353."""

from typing import ClassVar, Literal

from dialoop.train.adapter import Adapter


class Dora(Adapter, frozen=True):
    """Train direction by a low-rank update and length of each weight row apart."""

    kind: Literal["dora"] = "dora"

    use_dora: ClassVar[bool] = True
