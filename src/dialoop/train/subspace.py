"""An optimiser that moves matrices by a projection of their gradients: GaLore and APOLLO.

Each projected matrix has a proxy of the projection's shape that is zero before every step; any
elementwise optimiser moves the proxies at rate 1, and what it made of them is minus its direction.
So the states have the projection's size, and 8-bit states come with 8-bit optimisers.

Source: GaLore, Zhao et al. 2024, arXiv:2403.03507, algorithm 2; APOLLO, Zhu et al. 2024,
arXiv:2412.05270, algorithm 1, with the norm-growth limiter of Chen et al. 2024, arXiv:2410.01623.

E x D is a matrix's shape, R the rank, S = min(E, D), L = max(E, D).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

if TYPE_CHECKING:
    from dialoop.train.optim import Optim
    from dialoop.train.optimizers import Optimizer

State = dict[str, Any]


class Subspace(Protocol):
    """Projects gradients, with the shorter side first."""

    def project(self, grad: Tensor, state: State, rank: int) -> Tensor:
        """(S, L) to (R, L), float32; `state` is the matrix's own and holds its step."""
        ...

    def update(self, direction: Tensor, low: Tensor, grad: Tensor, state: State) -> Tensor:
        """The (S, L) direction of the matrix from that of its projection.

        Args:
            direction: (R, L) what the optimiser makes of `low`.
            low: (R, L) the projected gradient.
            grad: (S, L) the gradient.
            state: the matrix's own.
        """
        ...


class Principal:
    """GaLore: the gradient's own largest singular directions.

    Args:
        gap: steps between decompositions.
        scale: alpha, factor of the update.
        num_iterations: of the randomised SVD; 0 decomposes exactly.
    """

    def __init__(self, gap: int, scale: float, num_iterations: int) -> None:
        self.gap, self.scale, self.num_iterations = gap, scale, num_iterations

    def project(self, grad: Tensor, state: State, rank: int) -> Tensor:
        """P^T G, with P (S, R)."""
        if state["step"] % self.gap == 0:
            if self.num_iterations:
                u, _, _ = torch.svd_lowrank(grad, rank, niter=self.num_iterations)
            else:
                u, _, _ = torch.linalg.svd(grad, full_matrices=False)
            state["projection"] = u[:, :rank].contiguous()
        return state["projection"].T @ grad

    def update(self, direction: Tensor, low: Tensor, grad: Tensor, state: State) -> Tensor:
        """Alpha P N."""
        del low, grad
        return self.scale * (state["projection"] @ direction)


class Channels:
    """APOLLO: the gradient itself, each channel scaled as a random projection of it would be.

    Args:
        gap: steps between projections, which are drawn anew from `seed` and never kept.
        scale: alpha, factor of the update.
        limit: largest growth of an update's norm from one step to the next.
        seed: of the run.
    """

    def __init__(self, gap: int, scale: float, limit: float, seed: int) -> None:
        self.gap, self.scale, self.limit, self.seed = gap, scale, limit, seed

    def project(self, grad: Tensor, state: State, rank: int) -> Tensor:
        """P G, with P (R, S) from N(0, 1/R)."""
        generator = torch.Generator(grad.device)
        generator.manual_seed(self.seed + 1_000_003 * state["number"] + state["step"] // self.gap)
        shape = (rank, len(grad))
        drawn = torch.randn(shape, generator=generator, device=grad.device)
        return (drawn / rank**0.5) @ grad

    def update(self, direction: Tensor, low: Tensor, grad: Tensor, state: State) -> Tensor:
        """Alpha G diag(s): s for each of the L channels, or for the matrix when R is 1."""
        dims = (0, 1) if len(low) == 1 else 0
        tiny = torch.finfo(low.dtype).tiny
        share = torch.linalg.vector_norm(direction, dim=dims)
        share = share / torch.linalg.vector_norm(low, dim=dims).clamp_min(tiny)
        scaled = grad * share
        norm = scaled.norm()
        if "norm" in state:
            largest = self.limit * state["norm"]
            scaled = torch.where(norm > largest, scaled * (largest / norm.clamp_min(tiny)), scaled)
            norm = torch.minimum(norm, largest)
        state["norm"] = norm
        return self.scale * scaled


class InSubspace(torch.optim.Optimizer):
    """Moves projected groups through a subspace, and the others as they are.

    Args:
        groups: as the tuner made them; `is_projected` tells which are projected.
        subspace: how gradients are projected.
        rank: R, at most S.
        optimizer: elementwise; moves proxies and the other parameters.
        optim: its decay rates.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        subspace: Subspace,
        rank: int,
        optimizer: Optimizer,
        optim: Optim,
    ) -> None:
        super().__init__(groups, {})
        self.subspace, self.rank = subspace, rank
        self.proxies: dict[Tensor, nn.Parameter] = {}
        inner: list[dict[str, Any]] = []
        for group in self.param_groups:
            if not group["is_projected"]:
                inner.append(dict(group))
                continue
            for p in group["params"]:
                self.state[p] = {"step": 0, "number": len(self.proxies)}
                low = torch.zeros(min(rank, *p.shape), max(p.shape), device=p.device)
                self.proxies[p] = nn.Parameter(low)
            inner.append(group | {"params": [self.proxies[p] for p in group["params"]]})
        self.inner = optimizer.build(inner, optim)

    def step_in_backward(self) -> None:
        """Move each parameter as soon as its gradient is whole, and let the gradient go."""

        def move(p: Tensor) -> None:
            self.step()
            p.grad = None

        for group in self.param_groups:
            for p in group["params"]:
                p.register_post_accumulate_grad_hook(move)

    @override
    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        del closure
        moving: list[tuple[Tensor, Tensor, dict[str, Any]]] = []
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner["lr"] = group["lr"]
            if not group["is_projected"]:
                continue
            inner["lr"], inner["weight_decay"] = 1.0, 0.0
            for p in group["params"]:
                if p.grad is not None:
                    grad = _short_first(p.grad.float())
                    proxy = self.proxies[p]
                    proxy.zero_()
                    proxy.grad = self.subspace.project(grad, self.state[p], len(proxy))
                    moving.append((p, grad, group))
        self.inner.step()
        for p, grad, group in moving:
            proxy, state = self.proxies[p], self.state[p]
            assert proxy.grad is not None  # noqa: S101
            update = self.subspace.update(-proxy, proxy.grad, grad, state)
            update = update if p.shape[0] <= p.shape[1] else update.T
            decayed = p.float() * (1 - group["lr"] * group["weight_decay"])
            p.copy_(_rounded(decayed - group["lr"] * update, p.dtype))
            proxy.grad = None
            state["step"] += 1

    @override
    def state_dict(self) -> dict[str, Any]:
        """Steps and projections of the projected matrices, and the inner optimiser's own."""
        return {"own": [self.state[p] for p in self.proxies], "inner": self.inner.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put both back; tensors keep their type, which torch would make the matrix's."""
        for p, state in zip(self.proxies, state_dict["own"], strict=True):
            self.state[p] = {
                name: value.to(p.device) if isinstance(value, Tensor) else value
                for name, value in state.items()
            }
        self.inner.load_state_dict(state_dict["inner"])


def _short_first(grad: Tensor) -> Tensor:
    """(E, D) to (S, L)."""
    return grad if grad.shape[0] <= grad.shape[1] else grad.T


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """In another type; to bfloat16 up or down at random, so that the mean is kept."""
    if dtype != torch.bfloat16:
        return value.to(dtype)
    bits = value.contiguous().view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).to(dtype)
