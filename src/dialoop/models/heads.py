"""What a model ends in: a token distribution, scores, or its hidden states.

Decoders score by their last token and a layer `score` without bias, as transformers' classes for
sequence classification have it; encoders by their first token and a layer `classifier`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from dialoop.core.errors import UserError
from dialoop.core.files import write_text
from dialoop.models import checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from dialoop.chat.template import Template

Head = Literal["tokens", "score", "none"]
TASK_TYPES: dict[Head, str] = {
    "tokens": "CAUSAL_LM", "score": "SEQ_CLS", "none": "FEATURE_EXTRACTION",
}  # fmt: skip
"""PEFT's names."""
ENCODERS = frozenset({"bert", "roberta", "xlm-roberta"})
"""Families that read in both directions and can be trained."""
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta"})
_ENDS = {"tokens": "a distribution over tokens", "score": "scores", "none": "hidden states"}


def head_of(folder: Path) -> Head:
    """What a checkpoint or an adapter ends in, told from its config."""
    if checkpoint.is_adapter(folder):
        task = checkpoint.read_json(folder / checkpoint.ADAPTER).get("task_type")
        known: dict[str, Head] = {name: head for head, name in TASK_TYPES.items()}
        return known.get(str(task), "tokens")
    named = checkpoint.read_json(folder / "config.json").get("architectures") or [""]
    if named[0].endswith("ForSequenceClassification"):
        return "score"
    return "none" if named[0].endswith("Model") else "tokens"


def refuse_other(folder: Path, wanted: Head) -> None:
    """Refuse a checkpoint that ends in something else than is wanted.

    Raises:
        UserError: says what it ends in.
    """
    found = head_of(folder)
    if found == wanted:
        return
    use = {
        "tokens": "it writes text",
        "score": "it ranks or classifies texts; load it with transformers'"
        " AutoModelForSequenceClassification",
        "none": "it embeds texts; load it with sentence-transformers",
    }
    raise UserError(f"`{folder}` ends in {_ENDS[found]}, not in {_ENDS[wanted]}", hint=use[found])


def num_scores(folder: Path) -> int:
    """How many scores an adapter gives a text.

    Raises:
        UserError: it has no score head.
    """
    entries = checkpoint.entries(folder / "adapter_model.safetensors")
    ends = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
    found = [entry.shape[0] for entry in entries if entry.name.endswith(ends)]
    if not found:
        raise UserError(f"adapter `{folder}` has no score head", hint="copy it again")
    return found[0]


def kind_of(model: PreTrainedModel) -> Head:
    """What a loaded model ends in."""
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return "score"
    return "none" if name.endswith("Model") else "tokens"


def score_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the layers between hidden states and scores; none where the model has no scores."""
    wanted = {"score", "classifier", "pooler"} if kind_of(model) == "score" else set()
    names = [name.rsplit(".", 1)[-1] for name, _ in model.named_modules()]
    return tuple(sorted(wanted.intersection(names)))


def is_score_key(name: str) -> bool:
    """Whether a weight belongs to the layers between hidden states and scores."""
    return not {"score", "classifier", "pooler"}.isdisjoint(name.split("."))


def is_bidirectional(model: PreTrainedModel) -> bool:
    """Whether tokens see those behind them."""
    return any(vars(module).get("is_causal") is False for module in model.modules())


def first_position(model: PreTrainedModel) -> int:
    """The position id of a text's first token."""
    config = model.config
    return config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0


def refuse_untrainable(model: PreTrainedModel) -> None:
    """Refuse an encoder where text is to be written, and encoders of families that are not known.

    Raises:
        UserError: says which.
    """
    family = model.config.model_type
    if not is_bidirectional(model):
        return
    if kind_of(model) == "tokens":
        raise UserError(
            f"a `{family}` encoder does not write text",
            hint="train it by `dialoop embed`, `rerank` or `classify`",
        )
    if family not in ENCODERS:
        raise UserError(
            f"encoders of the family `{family}` cannot be trained",
            hint=f"use a decoder, or one of {', '.join(sorted(ENCODERS))}",
        )


def set_padding(model: PreTrainedModel, template: Template) -> None:
    """Give a decoder with scores a padding token that no text ends on.

    Transformers scores the last token that is no padding, so that a padding token that also ends
    answers would move the place that is read.

    Raises:
        UserError: the tokenizer has no such token.
    """
    if kind_of(model) != "score" or is_bidirectional(model):
        return
    model.config.pad_token_id = template.tokenizer.token_id(_padding(template))


def write_padding(folder: Path, template: Template) -> None:
    """Name the same padding token in the checkpoint's tokenizer."""
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = checkpoint.read_json(path) if path.is_file() else {}
    write_text(path, json.dumps(config | {"pad_token": _padding(template)}, indent=2) + "\n")


def _padding(template: Template) -> str:
    known = template.tokenizer.special_tokens
    for name in ("pad_token", "bos_token", "unk_token"):
        token = known.get(name)
        if token and template.tokenizer.token_id(token) not in {*template.stop_ids, None}:
            return token
    raise UserError(
        "the tokenizer has no token to pad with that does not end answers, too",
        hint="name one as pad_token in its tokenizer_config.json",
    )
