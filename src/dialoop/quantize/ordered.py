"""Ordered: one forward pass of a layer in which each linear layer is rounded before it computes.

So later projections see what the rounded earlier ones give, as GPTQ asks for, and layers that read
the same states (queries, keys and values; gate and up) share the moments of those states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dialoop.quantize.moments import Moments
from dialoop.quantize.source import inputs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from dialoop.quantize.source import Layer, Part


class _Reached(Exception):  # noqa: N818 - it ends a forward pass early and is no error
    """A forward pass came to the linear layer that it was run for."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


@torch.no_grad()
def in_order(
    layer: Layer,
    parts: list[Part],
    visit: Callable[[str, Moments], None],
    *,
    products: bool = True,
) -> None:
    """Let all parts through a layer, in place; each linear layer is visited before it computes.

    Args:
        layer: with its whole weights.
        parts: at least one.
        visit: called with each linear layer's name and the moments of its inputs, in the order of
            computing; it may set the layer's weight.
        products: keep the products of inputs, too.
    """
    first, *others = parts
    names: dict[nn.Module, str] = {module: name for name, module in layer.linears.items()}
    read: Tensor | None = None
    moments: Moments | None = None

    def arrive(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal read, moments
        (states,) = inputs
        if moments is None or states is not read:
            read = states
            moments = Moments(states.shape[-1], states.device, products=products)
            moments.add(states)
            for part in others:
                moments.add(_reach(layer, part, module))
        visit(names[module], moments)

    hooks = [_Hook(module, arrive) for module in names]
    try:
        first.states = layer.forward(first)
    finally:
        for hook in hooks:
            hook.remove()
    for part in others:
        part.states = layer.forward(part)


class _Hook:
    """A pre-forward hook that does not listen to forward passes within its own call."""

    is_busy = False

    def __init__(
        self, module: nn.Module, call: Callable[[nn.Module, tuple[Tensor, ...]], None]
    ) -> None:
        self._call = call
        self._handle = module.register_forward_pre_hook(self._listen)

    def _listen(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if _Hook.is_busy:
            return
        _Hook.is_busy = True
        try:
            self._call(module, inputs)
        finally:
            _Hook.is_busy = False

    def remove(self) -> None:
        self._handle.remove()


def _reach(layer: Layer, part: Part, module: nn.Module) -> Tensor:
    """The input of one linear layer."""

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    hook = module.register_forward_pre_hook(stop)
    try:
        layer.forward(part)
    except _Reached as reached:
        return reached.states
    finally:
        hook.remove()
    raise AssertionError("the layer does not compute the same way for every part")


@torch.no_grad()
def survey(layer: Layer, parts: list[Part], *, products: bool) -> dict[str, Moments]:
    """The moments of every linear layer's inputs, whole weights computing; the parts stay.

    Args:
        layer: with its whole weights.
        parts: what it reads.
        products: keep the products of inputs, too.
    """
    found: dict[str, Moments] = {}
    last: tuple[Tensor, Moments] | None = None
    leader: dict[str, str] = {}
    for name, states in inputs_of(layer, parts):
        if name in leader and leader[name] != name:
            continue
        if name not in found:
            if last is not None and states is last[0]:
                found[name] = last[1]
                leader[name] = next(n for n, m in found.items() if m is last[1])
                continue
            found[name] = Moments(states.shape[-1], states.device, products=products)
            leader[name] = name
        found[name].add(states)
        last = states, found[name]
    return found
