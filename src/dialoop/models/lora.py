"""Low-rank adapters as modules of our own, saved and read in PEFT's format.

A linear layer is replaced by a LoraLinear around it through `set_submodule`; nothing of torch,
transformers or PEFT is patched. The parameters A and B are float32 and are cast to the activation's
type in the forward pass, so that the optimiser's small steps are not lost in bfloat16.

Source: Hu et al. 2021, arXiv:2106.09685, eq. 3; rank-stabilised scale: Kalajdzievski 2023,
arXiv:2312.03732, eq. 3. The file format is that of peft 0.21 (`adapter_config.json`,
`adapter_model.safetensors`).

D is the layer's input width, E its output width, R the rank.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dialoop.core.errors import UserError
from dialoop.core.files import write_text
from dialoop.models.save import make_readable

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from transformers import PreTrainedModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What an adapter is made of."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """`all-linear`, or names and `*` patterns of layers, matched on whole path endings."""
    rank_pattern: dict[str, int] = field(default_factory=dict[str, int])
    """Other ranks, by layer name ending or pattern."""
    alpha_pattern: dict[str, float] = field(default_factory=dict[str, float])
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) in place of alpha / rank."""
    modules_to_save: tuple[str, ...] = ()
    """Last names of modules that are trained whole and saved with the adapter, such as a head."""
    task_type: str = "CAUSAL_LM"
    """What the model does, in PEFT's words."""

    def shape(self, name: str) -> tuple[int, float]:
        """Rank and scale of one layer."""
        rank = _lookup(self.rank_pattern, name, self.rank)
        alpha = _lookup(self.alpha_pattern, name, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)


class LoraLinear(nn.Module):
    """y = base(x) + scale * B A dropout(x), with the base frozen.

    Args:
        base: a linear layer, plain or quantised, from D to E.
        rank: R.
        scale: factor of the update.
        dropout: share of the update's input set to zero while training.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.scale = scale
        self.dropout = dropout
        self.is_enabled = True
        device = next(base.parameters()).device
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
        if not self.is_enabled:
            return y
        x = F.dropout(x, self.dropout, self.training)
        down = F.linear(x, self.lora_A.to(x.dtype))  # (..., R)
        return y + F.linear(down, self.lora_B.to(x.dtype)) * self.scale

    def delta(self) -> Tensor:
        """The update of the weight, (E, D) float32."""
        return (self.lora_B.float() @ self.lora_A.float()) * self.scale


def layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Every adapted layer by its path in the model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def saved_modules(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """The modules that are trained whole, by their path in the model."""
    wanted = config.modules_to_save
    return {n: m for n, m in model.named_modules() if n.rsplit(".", 1)[-1] in wanted}


@contextmanager
def disabled(model: nn.Module) -> Generator[None]:
    """Within this, the model answers as its base does.

    Raises:
        UserError: the model carries no adapter.
    """
    found = layers(model).values()
    if not found:
        raise UserError("the model carries no adapter that could be switched off")
    for layer in found:
        layer.is_enabled = False
    try:
        yield
    finally:
        for layer in found:
            layer.is_enabled = True


def target_names(model: PreTrainedModel, targets: tuple[str, ...]) -> list[str]:
    """Paths of the linear layers that `targets` names; the output head only when named.

    Raises:
        UserError: a target matches no linear layer.
    """
    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    found: dict[str, None] = {}
    for target in targets:
        if target == ALL_LINEAR:
            hits = [name for name, module in linear.items() if module is not head]
        else:
            hits = [name for name in linear if _matches(target, name)]
        if not hits:
            known = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise UserError(
                f"no linear layer matches the LoRA target `{target}`",
                hint=f"use `{ALL_LINEAR}` or some of {', '.join(known)}",
            )
        found |= dict.fromkeys(hits)
    return sorted(found, key=list(linear).index)


def attach(model: PreTrainedModel, config: LoraConfig, *, seed: int = 0) -> None:
    """Freeze the model and put fresh adapters around its target layers, in place.

    Args:
        model: any transformers model with `nn.Linear` layers, quantised ones included.
        config: ranks, scales and targets.
        seed: seeds the draw of A, the same on every device.

    Raises:
        UserError: a target matches no linear layer, or the model has adapters already.
    """
    if layers(model):
        raise UserError("the model carries an adapter already", hint="merge it first")
    model.requires_grad_(requires_grad=False)
    whole = saved_modules(model, config)
    for module in whole.values():
        module.float().requires_grad_(requires_grad=True)
    generator = torch.Generator().manual_seed(seed)
    for name in target_names(model, config.targets):
        if any(name == path or name.startswith(f"{path}.") for path in whole):
            continue
        rank, scale = config.shape(name)
        layer = LoraLinear(model.get_submodule(name), rank, scale, config.dropout)
        layer.reset(generator)
        layer.train(model.training)
        model.set_submodule(name, layer)


def save(model: PreTrainedModel, config: LoraConfig, folder: Path, *, base: str) -> None:
    """Write the adapter as PEFT does.

    Args:
        model: a model with adapters.
        config: what they were made of.
        folder: an existing folder.
        base: what loads the base model: a path or a hub id.
    """
    found = layers(model)
    tensors = {
        f"{_PREFIX}{name}.lora_{side}.weight": getattr(layer, f"lora_{side}").detach().cpu()
        for name, layer in found.items()
        for side in ("A", "B")
    }
    for path, module in saved_modules(model, config).items():
        for name, value in module.state_dict().items():
            tensors[f"{_PREFIX}{path}.{name}"] = value.detach().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    make_readable(folder)
    description = {
        "peft_type": "LORA",
        "task_type": config.task_type,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": _saved_targets(found),
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "use_rslora": config.use_rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": list(config.modules_to_save) or None,
    }
    write_text(folder / CONFIG_FILE, json.dumps(description, indent=2) + "\n")


def read_config(folder: Path) -> tuple[LoraConfig, str]:
    """The configuration of a saved adapter, and what its base model is called.

    Raises:
        UserError: the file is missing or damaged, or the adapter is of a kind that is not LoRA.
    """
    path = folder / CONFIG_FILE
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the adapter `{path}`: {error}") from error
    _refuse_unknown(raw, path)
    targets = raw.get("target_modules") or ALL_LINEAR
    config = LoraConfig(
        rank=raw["r"],
        alpha=raw["lora_alpha"],
        dropout=raw.get("lora_dropout", 0.0),
        targets=(targets,) if isinstance(targets, str) else tuple(targets),
        rank_pattern=raw.get("rank_pattern") or {},
        alpha_pattern=raw.get("alpha_pattern") or {},
        use_rslora=raw.get("use_rslora", False),
        modules_to_save=tuple(raw.get("modules_to_save") or ()),
        task_type=raw.get("task_type") or "CAUSAL_LM",
    )
    return config, raw.get("base_model_name_or_path") or ""


def load(model: PreTrainedModel, folder: Path) -> LoraConfig:
    """Put a saved adapter on its base model, in place.

    The layers are those that the weights name, so that any target spelling of PEFT reads.

    Raises:
        UserError: a file is damaged, or the adapter was made for another base model.
    """
    config, _ = read_config(folder)
    tensors = _saved_tensors(folder)
    _load_whole(model, config, tensors, folder)
    for name, (a, b) in _saved_layers(tensors, folder).items():
        base = _linear_at(model, name, folder)
        wide, narrow = base.in_features, base.out_features
        if a.shape[1] != wide or b.shape[0] != narrow:
            raise UserError(
                f"adapter `{folder}` is for another base: `{name}` is {b.shape[0]}x{a.shape[1]}"
                f" in the adapter and {narrow}x{wide} in the model",
                hint="give the base model that the adapter was trained on",
            )
        layer = LoraLinear(base, a.shape[0], config.shape(name)[1], config.dropout)
        with torch.no_grad():
            layer.lora_A.copy_(a)
            layer.lora_B.copy_(b)
        layer.train(model.training)
        model.set_submodule(name, layer)
    return config


def _saved_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read the adapter `{path}`: {error}", hint="copy it again from its source"
        ) from error


def _load_whole(
    model: nn.Module, config: LoraConfig, tensors: dict[str, Tensor], folder: Path
) -> None:
    """Take the weights of modules that were trained whole out of `tensors` into the model."""
    for path, module in saved_modules(model, config).items():
        module.float()
        for name, value in module.state_dict().items():
            saved = tensors.pop(f"{_PREFIX}{path}.{name}", None)
            if saved is None or saved.shape != value.shape:
                raise UserError(
                    f"adapter `{folder}` lacks `{path}.{name}` of shape {tuple(value.shape)}",
                    hint="give the base model that the adapter was trained on",
                )
            value.copy_(saved)


def _saved_layers(tensors: dict[str, Tensor], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    path = folder / WEIGHTS_FILE
    names = [k.removesuffix(".lora_A.weight") for k in tensors if k.endswith(".lora_A.weight")]
    if 2 * len(names) != len(tensors):
        other = [k for k in tensors if not k.endswith((".lora_A.weight", ".lora_B.weight"))]
        raise UserError(f"adapter `{path}` holds tensors that are not LoRA: {', '.join(other[:3])}")
    return {
        name.removeprefix(_PREFIX): (
            tensors[f"{name}.lora_A.weight"],
            tensors[f"{name}.lora_B.weight"],
        )
        for name in names
    }


def _linear_at(model: nn.Module, name: str, folder: Path) -> nn.Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        raise UserError(
            f"adapter `{folder}` is for another base: the model has no linear layer `{name}`",
            hint="give the base model that the adapter was trained on",
        )
    return module


def _refuse_unknown(raw: dict[str, Any], path: Path) -> None:
    if raw.get("peft_type") != "LORA":
        raise UserError(f"`{path}`: adapters of type {raw.get('peft_type')!r} are not supported")
    for name in ("use_dora", "layer_replication", "lora_bias", "fan_in_fan_out"):
        if raw.get(name):
            raise UserError(f"`{path}`: an adapter with `{name}` is not supported")


def _saved_targets(found: dict[str, LoraLinear]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in found})


def _lookup(patterns: dict[str, Any], name: str, default: Any) -> Any:
    return next((value for key, value in patterns.items() if _matches(key, name)), default)


def _matches(pattern: str, name: str) -> bool:
    """Whether a name, a `*` pattern or a regular expression of PEFT's names this layer."""
    if name == pattern or name.endswith(f".{pattern}") or fnmatch.fnmatchcase(name, pattern):
        return True
    is_expression = any(c in pattern for c in "\\^$(|[+")
    return is_expression and re.fullmatch(rf"(.*\.)?({pattern})", name) is not None
