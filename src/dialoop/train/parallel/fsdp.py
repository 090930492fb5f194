"""Parameters, gradients and optimiser states in shards: each rank keeps its part of every tensor.

Every decoder layer is gathered when it computes and freed after it; embedding, norm and head are
the root's. All questions to the model go through the root, so that its hooks run whichever part is
asked. Gradients are summed, not averaged, since a rank's loss is its share of the step's. After a
question without gradient nothing stays gathered, so that what reads the parameters next finds the
shards that are trained. Source: FSDP, Zhao et al. 2023, arXiv:2304.11277, as
`torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from dialoop.core.device import DeviceKind
    from dialoop.train.parallel.mesh import Mesh

T = TypeVar("T")


class Root(nn.Module):
    """Asks a model whose parameters are in shards."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, question: Callable[..., T], *about: Any) -> T:
        """What `question(*about)` returns; called by `ask`, so that its hooks run."""
        return question(*about)

    def ask(self, question: Callable[..., T], *about: Any) -> T:
        """What `question(*about)` returns while the parameters that it reads are gathered.

        All ranks ask together, and call the model alike.
        """
        answer = self(question, *about)
        if not torch.is_grad_enabled():
            for part in self._parts:
                part.reshard()
        return answer

    def ask_whole(self, question: Callable[[], T]) -> T:
        """What a question returns while every rank holds all parameters, without gradient.

        All ranks ask together, but each may call the model as often as it likes.
        """
        return self.ask(self._whole, question)

    def _whole(self, question: Callable[[], Any]) -> Any:
        layers = [part for part in self._parts if part is not self]
        for layer in layers:
            layer.unshard()
            layer.set_reshard_after_forward(False, recurse=False)
        try:
            return question()
        finally:
            for layer in layers:
                layer.set_reshard_after_forward(True, recurse=False)

    @property
    def _parts(self) -> list[FSDPModule]:
        return [module for module in self.modules() if isinstance(module, FSDPModule)]


def shard(
    model: PreTrainedModel, mesh: Mesh, kind: DeviceKind, compute: torch.dtype | None
) -> Root:
    """Split a model's parameters over all ranks, in place.

    Args:
        model: prepared by its tuner, the same on all ranks.
        mesh: the ranks.
        kind: of the devices; the parameters are moved there layer by layer.
        compute: type that float32 weights are gathered in; None gathers each in its own.
    """
    devices = init_device_mesh(kind, (mesh.size,))
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    decoder: Any = model.get_decoder()
    for layer in decoder.layers:
        fully_shard(layer, mesh=devices, mp_policy=policy)
    root = Root(model)
    fully_shard(root, mesh=devices, mp_policy=policy)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return root


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be in shards; every rank takes part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_part_of(like: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor split as another of its shape is."""
    if not isinstance(like, DTensor):
        return tensor
    local = tensor.to(like.device)
    return distribute_tensor(local, like.device_mesh, like.placements, src_data_rank=None)


def collect(model: nn.Module) -> None:
    """Put whole parameters in the place of shards, on the CPU; every rank takes part."""
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                full = whole(parameter.detach()).cpu()
                plain = nn.Parameter(full, requires_grad=parameter.requires_grad)
                module.register_parameter(name, plain)
