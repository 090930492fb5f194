"""Parameters, gradients and optimiser states in shards: each rank keeps its part of every tensor.

Every decoder layer is gathered when it computes and freed after it, or after its backward pass;
embedding, norm and head are the root's. All questions to the model go through the root, so that its
hooks run whichever part is asked. Gradients are summed, not averaged, since a rank's loss is its
share of the step's. After a question without gradient nothing stays gathered, so that what reads
the parameters next finds the shards that are trained. Sources: ZeRO, Rajbhandari et al. 2020,
arXiv:1910.02054, section 5; ZeRO-Offload, Ren et al. 2021, arXiv:2101.06840; FSDP, Zhao et al.
2023, arXiv:2304.11277, as `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from dialoop.train.parallel.mesh import Mesh

T = TypeVar("T")


class Root(nn.Module):
    """Asks a model whose parameters are in shards.

    Args:
        model: the model.
        device: where it computes.
        frees: whether a layer is freed between its forward and its backward pass.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device, *, frees: bool) -> None:
        super().__init__()
        self.model, self.device, self.frees = model, device, frees

    def forward(self, question: Callable[..., T], *about: Any) -> T:
        """What `question(*about)` returns; called by `ask`, so that its hooks run."""
        return question(*about)

    def ask(self, question: Callable[..., T], *about: Any) -> T:
        """What `question(*about)` returns while the parameters that it reads are gathered.

        All ranks ask together, and call the model alike.
        """
        answer = self(question, *about)
        if not torch.is_grad_enabled():
            for part in self.parts:
                part.reshard()
        return answer

    def ask_whole(self, question: Callable[[], T]) -> T:
        """What a question returns while every rank holds all parameters, without gradient.

        All ranks ask together, but each may call the model as often as it likes.
        """
        return self.ask(self._whole, question)

    def _whole(self, question: Callable[[], Any]) -> Any:
        layers = [part for part in self.parts if part is not self]
        for layer in layers:
            layer.unshard()
            layer.set_reshard_after_forward(False, recurse=False)
        try:
            return question()
        finally:
            for layer in layers:
                layer.set_reshard_after_forward(self.frees, recurse=False)

    @property
    def parts(self) -> list[FSDPModule]:
        """What is gathered and freed by itself: the layers, and the root."""
        return [module for module in self.modules() if isinstance(module, FSDPModule)]


def shard(
    model: PreTrainedModel,
    mesh: Mesh,
    device: torch.device,
    compute: torch.dtype | None,
    *,
    frees: bool = True,
    offload: bool = False,
    spread: bool = False,
) -> Root:
    """Split a model's parameters over all ranks, in place.

    Args:
        model: prepared by its tuner, alike on all ranks.
        mesh: the ranks.
        device: of this rank; the parameters are moved there layer by layer.
        compute: type that float32 weights are gathered in; None gathers each in its own.
        frees: whether a layer is freed between its forward and its backward pass (ZeRO-3).
        offload: whether shards, gradients and with them optimiser states lie on the host.
        spread: whether only rank 0's numbers count, and reach the others layer by layer; theirs may
            be on the meta device. Otherwise every rank has the same.
    """
    devices = init_device_mesh(device.type, (mesh.size,))
    options: dict[str, Any] = {
        "mesh": devices,
        "mp_policy": MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32),
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    for layer in [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]:
        if spread:
            _receive(layer, mesh, device)
        fully_shard(layer, reshard_after_forward=frees, **options)
    root = Root(model, device, frees=frees)
    if spread:
        _receive(root, mesh, device)
    fully_shard(root, reshard_after_forward=False, **options)
    for module in root.parts:
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return root


@torch.no_grad()
def _receive(module: nn.Module, mesh: Mesh, device: torch.device) -> None:
    """Put rank 0's tensors in the place of all that are not in shards yet, on the device."""

    def received(tensor: Tensor) -> Tensor:
        here = tensor if mesh.rank == 0 else torch.empty_like(tensor, device=device)
        here = here.detach().to(device).contiguous()
        dist.broadcast(here, src=0, group=mesh.group)
        return here

    known: dict[nn.Parameter, nn.Parameter] = {}  # so that tied ones stay tied
    for part in module.modules():
        for name, old in list(part.named_parameters(recurse=False)):
            if isinstance(old, DTensor):
                continue
            if old not in known:
                known[old] = nn.Parameter(received(old), requires_grad=old.requires_grad)
            part.register_parameter(name, known[old])
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, received(buffer))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be in shards; every rank takes part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_part_of(like: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor split as another of its shape is."""
    if not isinstance(like, DTensor):
        return tensor
    part = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return part.to(like.device)


def collect(model: nn.Module, *, keep: bool = True) -> None:
    """Put whole parameters in the place of shards, on the CPU; every rank takes part.

    Args:
        model: whose parameters are in shards.
        keep: whether this rank wants them; the others only give their shards.
    """
    known: dict[nn.Parameter, nn.Parameter] = {}  # so that tied ones stay tied
    for module in list(model.modules()):
        for name, old in list(module.named_parameters(recurse=False)):
            if not isinstance(old, DTensor):
                continue
            if old not in known:
                full = whole(old.detach())
                known[old] = nn.Parameter(full.cpu(), old.requires_grad) if keep else old
            module.register_parameter(name, known[old])
