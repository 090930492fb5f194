"""Formats of checkpoints whose linear layers are quantized already; one file a format.

A format says which tensors stand for a layer's weight, and what weight they mean. Loading, the
layer that computes with them and its gradient are the same for all (`models/quantized_layer.py`).

E is a layer's output width, D its input width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Format(ABC):
    """How the weights of a checkpoint are stored.

    Args:
        config: the `quantization_config` of its config.json.

    Raises:
        UserError: a variant that is not supported.
    """

    method: ClassVar[str]
    """The `quant_method` of the config."""
    marks: ClassVar[tuple[str, ...]]
    """Names of tensors of which every quantized layer has one."""
    needed: ClassVar[tuple[str, ...]]
    """Names of tensors that every quantized layer has."""
    parts: ClassVar[tuple[str, ...]]
    """Names of all tensors that a layer's weight may be made of."""

    @abstractmethod
    def __init__(self, config: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def dense(self, layer: str, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """The weight that a layer's tensors mean.

        Args:
            layer: its path in the checkpoint.
            parts: its tensors by name.
            shape: (E, D).

        Returns:
            (E, D) float32.
        """


def formats() -> dict[str, type[Format]]:
    """The formats by the name of their method."""
    found: dict[str, type[Format]] = {}
    for module in iter_modules(__path__):
        members = vars(import_module(f"{__name__}.{module.name}")).values()
        for member in members:
            if isinstance(member, type) and issubclass(member, Format) and member is not Format:
                found[member.method] = member
    return found
