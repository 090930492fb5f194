"""Adapters put on a model, saved and read in PEFT's format.

Source: rank-stabilised scale, Kalajdzievski 2023, arXiv:2312.03732, eq. 3. The file format is that
of peft 0.21 (`adapter_config.json`, `adapter_model.safetensors`).
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dialoop.core.errors import UserError
from dialoop.core.files import write_text
from dialoop.models.adapted import (
    Adapted,
    DoraLinear,
    LoraLinear,
    PissaLinear,
    TrainedCopy,
    TrainedRows,
    is_linear,
)
from dialoop.models.save import make_readable

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from transformers import PreTrainedModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
_PREFIX = "base_model.model."
_A, _B = "lora_A.weight", "lora_B.weight"
_MAGNITUDE = "lora_magnitude_vector"
_ROWS = "token_adapter.trainable_tokens_delta"


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
    """Other alphas, likewise."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) in place of alpha / rank."""
    use_dora: bool = False
    """The length of each row of the weight is learned apart."""
    copies: tuple[str, ...] = ()
    """Modules trained whole, by name ending or pattern: PEFT's `modules_to_save`."""
    token_ids: tuple[int, ...] = ()
    """Rows of embedding and head that are trained: PEFT's `trainable_token_indices`."""
    task_type: str = "CAUSAL_LM"
    """What the model does, in PEFT's words."""

    def shape(self, name: str) -> tuple[int, float]:
        """Rank and scale of one layer."""
        rank = _lookup(self.rank_pattern, name, self.rank)
        alpha = _lookup(self.alpha_pattern, name, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)


def layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Every layer with a low-rank update by its path in the model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def adapted(model: nn.Module) -> dict[str, Adapted]:
    """Every module that something is learned beside, by its path in the model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Adapted)}


@contextmanager
def disabled(model: nn.Module) -> Generator[None]:
    """Within this, the model answers as its base does.

    Raises:
        UserError: the model carries no adapter.
    """
    found = adapted(model).values()
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
    linear = {
        n: m for n, m in model.named_modules() if is_linear(m) and not isinstance(m, LoraLinear)
    }
    found: dict[str, None] = {}
    for target in targets:
        if target == ALL_LINEAR:
            hits = [name for name, module in linear.items() if module is not head]
        else:
            hits = [name for name in linear if matches(target, name)]
        if not hits:
            known = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise UserError(
                f"no linear layer matches the LoRA target `{target}`",
                hint=f"use `{ALL_LINEAR}` or some of {', '.join(known)}",
            )
        found |= dict.fromkeys(hits)
    return sorted(found, key=list(linear).index)


def attach(
    model: PreTrainedModel,
    config: LoraConfig,
    *,
    seed: int = 0,
    kind: type[LoraLinear] | None = None,
) -> None:
    """Freeze the model and put fresh adapters around its target layers, in place.

    Args:
        model: any transformers model with linear layers, quantised ones included.
        config: ranks, scales and targets.
        seed: seeds the draw of A, the same on every device.
        kind: the class of the layers, where `config` does not say it.

    Raises:
        UserError: a target matches no linear layer, or the model has adapters already.
    """
    if adapted(model):
        raise UserError("the model carries an adapter already", hint="merge it first")
    kind = kind or _kind(config)
    model.requires_grad_(requires_grad=False)
    names = target_names(model, config.targets)
    copied = _copy_modules(model, config.copies)
    _train_rows(model, config.token_ids)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        if any(f"{name}.".startswith(f"{other}.") for other in copied):
            continue
        rank, scale = config.shape(name)
        layer = kind(model.get_submodule(name), rank, scale, config.dropout)
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
    found = adapted(model)
    tensors = {
        f"{_PREFIX}{name}.{key}": tensor.detach().cpu().contiguous()
        for name, layer in found.items()
        for key, tensor in _saved_tensors(layer).items()
    }
    rows = {
        name: list(layer.ids) for name, layer in found.items() if isinstance(layer, TrainedRows)
    }
    if rows and (tied := _tied_names(model)):
        _, head = tied
        del tensors[f"{_PREFIX}{head}.{_ROWS}"]
    save_file({k: t.clone() for k, t in tensors.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    make_readable(folder)
    if any(isinstance(layer, PissaLinear) for layer in found.values()):
        config = doubled(config)
    copies = [name for name, layer in found.items() if isinstance(layer, TrainedCopy)]
    description = {
        "peft_type": "LORA",
        "task_type": config.task_type,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": _saved_targets(layers(model)),
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": copies or None,
        "trainable_token_indices": rows or None,
        "ensure_weight_tying": any(name in copies for name in _tied_names(model)),
    }
    write_text(folder / CONFIG_FILE, json.dumps(description, indent=2) + "\n")


def doubled(config: LoraConfig) -> LoraConfig:
    """The configuration of twice the rank everywhere, with the same scales."""
    growth = math.sqrt(2) if config.use_rslora else 2.0
    return replace(
        config,
        rank=2 * config.rank,
        alpha=growth * config.alpha,
        rank_pattern={name: 2 * rank for name, rank in config.rank_pattern.items()},
        alpha_pattern={name: growth * alpha for name, alpha in config.alpha_pattern.items()},
    )


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
        use_dora=raw.get("use_dora", False),
        copies=tuple(raw.get("modules_to_save") or ()),
        token_ids=_read_token_ids(raw, path),
        task_type=raw.get("task_type") or "CAUSAL_LM",
    )
    return config, raw.get("base_model_name_or_path") or ""


def load(model: PreTrainedModel, folder: Path) -> LoraConfig:
    """Put a saved adapter on its base model, in place, trainable.

    The layers are those that the weights name, so that any target spelling of PEFT reads.

    Raises:
        UserError: a file is damaged, the two files do not fit each other, or the adapter was made
            for another base model.
    """
    config, _ = read_config(folder)
    tensors = _read_tensors(folder)
    model.requires_grad_(requires_grad=False)
    if config.token_ids:
        grow(model, max(config.token_ids) + 1)
    copied = _copy_modules(model, config.copies)
    _refuse_untied(model, copied, tensors, folder)
    _train_rows(model, config.token_ids)
    for name in _layer_names(tensors):
        base = _linear_at(model, name, folder)
        rank, scale = config.shape(name)
        _check_layer(tensors, name, base, rank, folder)
        model.set_submodule(name, _kind(config)(base, rank, scale, config.dropout))
    _fill(adapted(model), tensors, folder)
    for layer in adapted(model).values():
        layer.train(model.training)
    return config


def grow(model: PreTrainedModel, num_rows: int) -> None:
    """Give embedding and head at least so many rows, in place; new ones are the mean row."""
    before = len(tables(model)[0].get_parameter("weight"))
    if num_rows <= before:
        return
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    with torch.no_grad():
        for table in tables(model):
            weight = table.get_parameter("weight")
            weight[before:] = weight[:before].float().mean(0).to(weight.dtype)


def tables(model: PreTrainedModel) -> list[nn.Module]:
    """The embedding, and the output head of a model that has one."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [end for end in ends if end is not None]


def _kind(config: LoraConfig) -> type[LoraLinear]:
    return DoraLinear if config.use_dora else LoraLinear


def _table_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Paths of the embedding and, where there is one, the output head."""
    names = {id(module): name for name, module in model.named_modules()}
    return tuple(names[id(table)] for table in tables(model))


def _tied_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Embedding and head where they are one table, otherwise nothing."""
    names = _table_names(model)
    return names if len(names) == 2 and model.config.tie_word_embeddings else ()


def _copy_modules(model: PreTrainedModel, copies: tuple[str, ...]) -> list[str]:
    """Put trained copies in the place of modules; of tied ones, both with one weight."""
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, None] = {}
    for pattern in copies:
        hits = [name for name in names if matches(pattern, name)]
        if not hits:
            raise UserError(
                f"no module matches `{pattern}` of modules_to_save",
                hint="use names such as embed_tokens or lm_head",
            )
        found |= dict.fromkeys(hits)
    tied = _tied_names(model)
    if set(tied) & set(found):
        found |= dict.fromkeys(tied)
    first: TrainedCopy | None = None
    for name in sorted(found, key=names.index):
        copy = TrainedCopy(model.get_submodule(name), first if name in tied else None)
        first = copy if name in tied else first
        model.set_submodule(name, copy.train(model.training))
    return list(found)


def _train_rows(model: PreTrainedModel, ids: tuple[int, ...]) -> None:
    """Put trained rows on embedding and head; of tied ones, one for both."""
    if not ids:
        return
    names, tied = _table_names(model), _tied_names(model)
    first: TrainedRows | None = None
    for name, kind in zip(names, (nn.Embedding, nn.Linear), strict=False):
        table = model.get_submodule(name)
        if type(table) is not kind:
            raise UserError(
                f"rows of a {type(table).__name__} cannot be trained",
                hint="leave new_tokens out, or add embedding and head to modules_to_save",
            )
        layer = TrainedRows(table, ids, first if name in tied else None)
        first = layer
        model.set_submodule(name, layer)


def _saved_tensors(layer: Adapted) -> dict[str, Tensor]:
    """What a file holds of one module, by PEFT's names."""
    if isinstance(layer, LoraLinear):
        a, b = layer.factors()
        found: dict[str, Tensor] = {_A: a, _B: b}
        if isinstance(layer, DoraLinear):
            found[_MAGNITUDE] = layer.lora_magnitude_vector
        return found
    if isinstance(layer, TrainedRows):
        return {_ROWS: layer.rows}
    assert isinstance(layer, TrainedCopy)  # noqa: S101
    return dict(layer.trained.state_dict())


@torch.no_grad()
def _fill(found: dict[str, Adapted], tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy what the file holds into the modules; each tensor must have its place."""
    places: dict[str, Tensor] = {}
    for name, layer in found.items():
        places |= {f"{name}.{key}": tensor for key, tensor in _saved_tensors(layer).items()}
    left = [key for key in tensors if key not in places]
    if left:
        raise UserError(
            f"adapter `{folder}` holds tensors that its configuration does not name:"
            f" {', '.join(left[:3])}",
            hint="copy both files of the adapter again from its source",
        )
    for key, tensor in tensors.items():
        if places[key].shape != tensor.shape:
            raise UserError(
                f"adapter `{folder}` is for another base: `{key}` is {tuple(tensor.shape)} in the"
                f" adapter and {tuple(places[key].shape)} in the model",
                hint="give the base model that the adapter was trained on",
            )
        places[key].copy_(tensor)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read the adapter `{path}`: {error}", hint="copy it again from its source"
        ) from error
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def _layer_names(tensors: dict[str, Tensor]) -> list[str]:
    return [key.removesuffix(f".{_A}") for key in tensors if key.endswith(f".{_A}")]


def _check_layer(
    tensors: dict[str, Tensor], name: str, base: nn.Module, rank: int, folder: Path
) -> None:
    """Refuse an update of another shape than its configuration and its base say."""
    a, b = tensors[f"{name}.{_A}"], tensors.get(f"{name}.{_B}")
    if b is None or len(a) != rank or b.shape[1] != rank:
        raise UserError(
            f"adapter `{folder}`: `{name}` has rank {len(a)} in its weights and {rank} in its"
            f" {CONFIG_FILE}",
            hint="copy both files of the adapter again from its source",
        )
    wide, narrow = base.in_features, base.out_features
    if a.shape[1] != wide or b.shape[0] != narrow:
        raise UserError(
            f"adapter `{folder}` is for another base: `{name}` is {b.shape[0]}x{a.shape[1]}"
            f" in the adapter and {narrow}x{wide} in the model",
            hint="give the base model that the adapter was trained on",
        )


def _linear_at(model: nn.Module, name: str, folder: Path) -> nn.Module:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if module is None or not is_linear(module):
        raise UserError(
            f"adapter `{folder}` is for another base: the model has no linear layer `{name}`",
            hint="give the base model that the adapter was trained on",
        )
    return module


def _refuse_untied(
    model: PreTrainedModel, copied: list[str], tensors: dict[str, Tensor], folder: Path
) -> None:
    """Embedding and head that are one table in the model must be one in the adapter."""
    tied = [f"{name}.weight" for name in _tied_names(model) if name in copied]
    tables = [tensors.get(key) for key in tied]
    if any(t is None or tables[0] is None or not torch.equal(t, tables[0]) for t in tables):
        raise UserError(
            f"adapter `{folder}` has an embedding and a head of their own, which are one table in"
            " its base",
            hint="train it with PEFT's `ensure_weight_tying`",
        )


def _read_token_ids(raw: dict[str, Any], path: Path) -> tuple[int, ...]:
    listed: Any = raw.get("trainable_token_indices") or {}
    lists = list(listed.values()) if isinstance(listed, dict) else [listed]
    if any(one != lists[0] for one in lists):
        raise UserError(f"`{path}`: other trained rows in the embedding than in the head")
    return tuple(lists[0]) if lists else ()


def _refuse_unknown(raw: dict[str, Any], path: Path) -> None:
    if raw.get("peft_type") != "LORA":
        raise UserError(f"`{path}`: adapters of type {raw.get('peft_type')!r} are not supported")
    for name in ("layer_replication", "lora_bias", "fan_in_fan_out", "target_parameters"):
        if raw.get(name):
            raise UserError(f"`{path}`: an adapter with `{name}` is not supported")


def _saved_targets(found: dict[str, LoraLinear]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in found})


def _lookup(patterns: dict[str, Any], name: str, default: Any) -> Any:
    return next((value for key, value in patterns.items() if matches(key, name)), default)


def matches(pattern: str, name: str) -> bool:
    """Whether a name, a `*` pattern or a regular expression of PEFT's names this layer."""
    if name == pattern or name.endswith(f".{pattern}") or fnmatch.fnmatchcase(name, pattern):
        return True
    is_expression = any(c in pattern for c in "\\^$(|[+")
    return is_expression and re.fullmatch(rf"(.*\.)?({pattern})", name) is not None
