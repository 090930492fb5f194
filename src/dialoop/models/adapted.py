"""Layers with an adapter: low-rank updates (LoRA, DoRA, PiSSA), trained copies, trained rows.

Each is a module around a frozen base, put in its place by `set_submodule`; nothing of torch,
transformers or PEFT is patched. Their parameters are float32 and are cast to the activation's type
in the forward pass, so that the optimiser's small steps are not lost in bfloat16.

Source: LoRA, Hu et al. 2021, arXiv:2106.09685, eq. 3; DoRA, Liu et al. 2024, arXiv:2402.09353,
eq. 5 and section 4.3; PiSSA, Meng et al. 2024, arXiv:2404.02948, eq. 2 to 5.

D is the layer's input width, E its output width, R the rank, V the vocabulary, n added tokens.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from dialoop.models.quantized_layer import QuantizedLinear

PLAIN = frozenset({torch.float32, torch.bfloat16, torch.float16})
"""Types of a weight that can be computed with as it is; anything else is quantised."""


class Adapted(nn.Module):
    """A frozen module and what is learned beside it.

    Args:
        base: the module whose place this one takes.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.is_enabled = True

    def merged(self) -> nn.Module:
        """The base with what was learned put into its weights, in place, rounded once."""
        raise NotImplementedError


class LoraLinear(Adapted):
    """y = base(x) + scale * B A dropout(x), with the base frozen.

    Args:
        base: a linear layer, plain or quantised, from D to E.
        rank: R.
        scale: factor of the update.
        dropout: share of the update's input set to zero while training.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base)
        self.scale = scale
        self.dropout = dropout
        device = next(iter(base.state_dict().values())).device
        wide, narrow = int(base.in_features), int(base.out_features)  # pyright: ignore[reportArgumentType]
        self.lora_A = nn.Parameter(torch.empty(rank, wide, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(narrow, rank, dtype=torch.float32, device=device))

    @property
    def in_features(self) -> int:
        """D."""
        return self.lora_A.shape[1]

    @property
    def out_features(self) -> int:
        """E."""
        return self.lora_B.shape[0]

    @property
    def weight(self) -> Tensor:
        """The base's weight (E, D): some models read their dtype from it."""
        return self.base.weight  # pyright: ignore[reportReturnType]

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (R, D) and B (E, R) of the update, float32."""
        return self.lora_A, self.lora_B

    def reset(self, generator: torch.Generator) -> None:
        """Draw A from U(-1/sqrt(D), 1/sqrt(D)) and zero B, as PEFT does."""
        bound = 1 / math.sqrt(self.in_features)
        drawn = torch.rand(self.lora_A.shape, generator=generator) * (2 * bound) - bound
        with torch.no_grad():
            self.lora_A.copy_(drawn)
            self.lora_B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., E), in the dtype of x."""
        y = self.base(x)
        return y + self._update(F.dropout(x, self.dropout, self.training)) if self.is_enabled else y

    def delta(self) -> Tensor:
        """The update of the weight, (E, D) float32."""
        a, b = self.factors()
        return (b.float() @ a.float()) * self.scale

    def merged_weight(self) -> Tensor:
        """The weight that answers as base and adapter do, (E, D) float32."""
        return dense_weight(self.base) + self.delta()

    @override
    @torch.no_grad()
    def merged(self) -> nn.Module:
        self.weight.copy_(self.merged_weight())
        return self.base

    def _update(self, x: Tensor) -> Tensor:
        a, b = self.factors()
        down = F.linear(x, a.to(x.dtype))  # (..., R)
        return F.linear(down, b.to(x.dtype)) * self.scale


class DoraLinear(LoraLinear):
    """y = m / |W + scale * B A| * (W + scale * B A) x: the length of each row is learned apart.

    The norm is that of each of the E rows; it is a constant in the backward pass (section 4.3).
    |W + s B A|^2 = |W|^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>, row by row, so that no (E, D) matrix
    is made in a step. Dropout acts on all of the input, as in PEFT.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, rank, scale, dropout)
        squares = dense_weight(base).square().sum(1)  # (E,)
        self.register_buffer("_squares", squares, persistent=False)
        self.lora_magnitude_vector = nn.Parameter(squares.sqrt())

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.is_enabled:
            return y
        share = (self.lora_magnitude_vector / self._norm(x.dtype)).to(x.dtype)  # (E,)
        plain, dropped = y, x
        if self.training and self.dropout:
            dropped = F.dropout(x, self.dropout)
            plain = self.base(dropped)
        return y + (share - 1) * self._without_bias(plain) + share * self._update(dropped)

    @override
    def merged_weight(self) -> Tensor:
        whole = dense_weight(self.base) + self.delta()
        return (self.lora_magnitude_vector / whole.norm(dim=1))[:, None] * whole

    @torch.no_grad()
    def _norm(self, dtype: torch.dtype) -> Tensor:
        """(E,) float32."""
        a, b = self.factors()
        across = self._without_bias(self.base(a.to(dtype))).float().T  # W A^T: (E, R)
        whole = self.get_buffer("_squares") + 2 * self.scale * (across * b).sum(1)
        return (whole + self.scale**2 * ((b @ (a @ a.T)) * b).sum(1)).clamp_min(0).sqrt()

    def _without_bias(self, y: Tensor) -> Tensor:
        bias: Any = self.base.bias
        return y if bias is None else y - bias


class PissaLinear(LoraLinear):
    """A LoRA that begins as the R largest singular directions of the base, which it takes out.

    y = W x + scale * (B A - B0 A0) x: the residual W - scale * B0 A0 of the paper, written so that
    it is never rounded, that switching the adapter off leaves the base, and that the update is an
    ordinary LoRA of rank 2R on the original base: A with A0 below, B with -B0 beside.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, rank, scale, dropout)
        self.register_buffer("lora_A0", torch.empty_like(self.lora_A))
        self.register_buffer("lora_B0", torch.empty_like(self.lora_B))

    @torch.no_grad()
    def decompose(self, num_iterations: int) -> None:
        """Set A and B to sqrt(S / scale) V^T and U sqrt(S / scale) of the base's weight.

        Args:
            num_iterations: of the randomised SVD; 0 decomposes exactly.
        """
        weight, rank = dense_weight(self.base), self.lora_A.shape[0]
        if num_iterations:
            u, s, v = torch.svd_lowrank(weight, rank, niter=num_iterations)
        else:
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            v = vh.T
        root = (s[:rank] / self.scale).sqrt()  # (R,)
        self.lora_A.copy_(root[:, None] * v[:, :rank].T)
        self.lora_B.copy_(u[:, :rank] * root)
        self.get_buffer("lora_A0").copy_(self.lora_A)
        self.get_buffer("lora_B0").copy_(self.lora_B)

    @override
    def factors(self) -> tuple[Tensor, Tensor]:
        """A (2R, D) and B (E, 2R)."""
        a0, b0 = self.get_buffer("lora_A0"), self.get_buffer("lora_B0")
        return torch.cat([self.lora_A, a0]), torch.cat([self.lora_B, -b0], 1)


class TrainedCopy(Adapted):
    """A module whose float32 copy is trained in its place.

    Args:
        base: any module; it stays as it was.
        tied: a copy of the module that this one shares its weight with.
    """

    def __init__(self, base: nn.Module, tied: TrainedCopy | None = None) -> None:
        super().__init__(base)
        self.trained = copy.deepcopy(base).float().requires_grad_(requires_grad=True)
        if tied is not None:
            self.trained.register_parameter("weight", tied.trained.get_parameter("weight"))

    @property
    def weight(self) -> Tensor:
        """Of the copy, or of the base while it is switched off."""
        return (self.trained if self.is_enabled else self.base).get_parameter("weight")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base does, in the base's type."""
        if not self.is_enabled:
            return self.base(*args, **kwargs)
        kinds = {name: p.dtype for name, p in self.base.named_parameters()}
        cast = {name: p.to(kinds[name]) for name, p in self.trained.named_parameters()}
        return torch.func.functional_call(self.trained, cast, args, kwargs)

    @override
    @torch.no_grad()
    def merged(self) -> nn.Module:
        for mine, theirs in zip(self.base.parameters(), self.trained.parameters(), strict=True):
            mine.copy_(theirs)
        return self.base


class TrainedRows(Adapted):
    """An embedding or output head of which a few rows are trained.

    Args:
        base: an `nn.Embedding` (V, D), or an `nn.Linear` from D to V.
        ids: the n rows.
        tied: those of the table that this one shares its weight with.
    """

    def __init__(self, base: nn.Module, ids: tuple[int, ...], tied: TrainedRows | None) -> None:
        super().__init__(base)
        self.ids = ids
        table = base.get_parameter("weight")
        places = torch.full((len(table),), -1, device=table.device)  # (V,)
        places[list(ids)] = torch.arange(len(ids), device=table.device)
        self.register_buffer("_places", places, persistent=False)
        self.register_buffer(
            "_ids", torch.tensor(ids, device=table.device), persistent=False
        )  # (n,)
        rows = table[list(ids)].detach().float()
        self.rows = nn.Parameter(rows.clone()) if tied is None else tied.rows  # (n, D)

    @property
    def weight(self) -> Tensor:
        """(V, D) the whole table."""
        table = self.base.get_parameter("weight")
        if not self.is_enabled:
            return table
        return table.index_copy(0, self.get_buffer("_ids"), self.rows.to(table.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Ids to (..., D), or (..., D) to (..., V)."""
        y = self.base(x)
        if not self.is_enabled:
            return y
        if isinstance(self.base, nn.Linear):
            fresh = F.linear(x, self.rows.to(x.dtype))  # (..., n)
            return y.index_copy(-1, self.get_buffer("_ids"), fresh)
        place = self.get_buffer("_places")[x]
        fresh = self.rows.to(y.dtype)[place.clamp_min(0)]
        return torch.where((place >= 0)[..., None], fresh, y)

    @override
    @torch.no_grad()
    def merged(self) -> nn.Module:
        self.base.get_parameter("weight").copy_(self.weight)
        return self.base


def is_linear(module: nn.Module) -> bool:
    """Whether it maps the last dim linearly: `nn.Linear`, and the like of any quantiser."""
    widths = [getattr(module, name, None) for name in ("in_features", "out_features")]
    return all(isinstance(width, int) for width in widths)


def dense_weight(linear: nn.Module) -> Tensor:
    """The weight (E, D) of any linear layer, float32; of a quantised one, what it computes with."""
    if isinstance(linear, QuantizedLinear):
        return linear.dense()
    tensors = dict(linear.named_parameters()) | dict(linear.named_buffers())
    weight = tensors.get("weight")
    if weight is not None and weight.dtype in PLAIN:
        return weight.detach().float()
    device = next(iter(tensors.values())).device
    wide: Any = linear.in_features
    kind = next((t.dtype for t in tensors.values() if t.dtype in PLAIN), torch.float32)
    with torch.no_grad():
        columns = linear(torch.eye(wide, dtype=kind, device=device))  # (D, E)
    bias = tensors.get("bias")
    return (columns if bias is None else columns - bias).float().T
