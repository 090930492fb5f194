"""Checkpoints that resume bit for bit: trained weights, optimiser, position and random state.

A checkpoint is a folder `checkpoints/step-000120`, written under another name and renamed, so that
a kill at any moment leaves the earlier ones whole and this one either whole or absent.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dialoop.core.errors import UserError
from dialoop.core.files import new_folder
from dialoop.models.save import make_readable
from dialoop.train.parallel.fsdp import as_part_of, whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run is."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    bin: int = 0
    """Packed rows of this epoch that were learned."""
    tokens: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    """Held-out loss before the first step."""
    best_loss: float | None = None
    best_step: int | None = None
    num_worse: int = 0
    """Measurements since the best one."""


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that move, by name; a shared one once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _kept(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds: what moves, and where adapters began."""
    began = {name: b for name, b in model.named_buffers() if name.endswith(("lora_A0", "lora_B0"))}
    return trained(model) | began


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    at: Position,
    *,
    write: bool = True,
) -> Path:
    """Write a checkpoint.

    Args:
        folder: the run's folder of checkpoints.
        model: its trained parameters are saved.
        optimizer: its state is saved.
        at: where the run is.
        write: whether this rank does; the others only give their shards. The files hold whole
            tensors, so that another number of ranks can go on.

    Returns:
        The checkpoint's folder.

    Raises:
        MachineError: the disk is full or may not be written; earlier checkpoints are unharmed.
    """
    path = folder / f"step-{at.step:06d}"
    weights = {n: whole(p.detach()).cpu().contiguous() for n, p in _kept(model).items()}
    described = _map_states(optimizer.state_dict(), lambda _, tensor: whole(tensor).cpu())
    if not write:
        return path
    with new_folder(path) as new:
        save_file(weights, new / "trained.safetensors")
        make_readable(new)
        state = {"optimizer": described, "random": random_state()}
        with (new / "state.pt").open("wb") as file:  # a file of ours: a full disk is told as such
            torch.save(state, file)
        (new / "position.json").write_text(json.dumps(asdict(at)), encoding="utf-8")
    return path


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    """Put a checkpoint's state back, in place.

    Raises:
        UserError: the checkpoint is damaged, or of another job.
    """
    load_weights(path, model)
    try:
        state: dict[str, Any] = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        position = Position(**json.loads((path / "position.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, RuntimeError, EOFError, TypeError) as error:
        raise _damaged(path, error) from error
    moving = [p for group in optimizer.param_groups for p in group["params"]]

    def part(number: int, tensor: Tensor) -> Tensor:
        like = moving[number]
        return as_part_of(like, tensor) if tensor.shape == like.shape else tensor

    optimizer.load_state_dict(_map_states(state["optimizer"], part))
    set_random_state(state["random"])
    return position


def load_weights(path: Path, model: nn.Module) -> None:
    """Put a checkpoint's trained weights back, in place.

    Raises:
        UserError: the checkpoint is damaged, or of another job.
    """
    try:
        saved = load_file(path / "trained.safetensors")
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error
    here = _kept(model)
    if {n: p.shape for n, p in here.items()} != {n: t.shape for n, t in saved.items()}:
        raise UserError(
            f"checkpoint `{path}` was made with another model or tuner",
            hint="resume with the job that made it, or choose another output folder",
        )
    with torch.no_grad():
        for name, tensor in saved.items():
            here[name].copy_(as_part_of(here[name], tensor))


def newest(folder: Path) -> Path | None:
    """The last whole checkpoint of a run."""
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    for path in sorted(folder.glob("step-*"))[:-keep]:
        if best_step is None or path.name != f"step-{best_step:06d}":
            shutil.rmtree(path)


def _map_states(
    described: dict[str, Any], change: Callable[[int, Tensor], Tensor]
) -> dict[str, Any]:
    """An optimiser's state with its tensors replaced, given the number of their parameter.

    Optimisers made of others keep theirs elsewhere; they are never in shards and stay as they are.
    """
    if "state" not in described:
        return described
    states = {
        number: {
            name: change(number, value) if torch.is_tensor(value) else value
            for name, value in state.items()
        }
        for number, state in described["state"].items()
    }
    return described | {"state": states}


def random_state() -> dict[str, Any]:
    """Where the random numbers of this process stand, on the host and on its accelerators."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go on from where `random_state` was taken."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"checkpoint `{path}` is damaged: {error}",
        hint="delete it to resume from the one before",
    )
