"""What sentence-transformers reads beside the weights of an embedding model.

The layout is that of its version 2, which later ones read as well: `modules.json`, the pooling's
config, the longest text, and the prompts. `SentenceTransformer(FOLDER)` then gives vectors of
length 1.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from dialoop.core.files import write_text
from dialoop.models import checkpoint, heads

if TYPE_CHECKING:
    from pathlib import Path

Pooling = Literal["last", "mean", "cls"]
_POOLING_FILE = "1_Pooling/config.json"
FILES = (
    "modules.json",
    _POOLING_FILE,
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
_FLAGS: dict[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}
_NAMES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}


def pooling_of(folder: Path) -> Pooling:
    """How a checkpoint makes one vector of a text: as it says, else by its family."""
    if (folder / _POOLING_FILE).is_file():
        config = checkpoint.read_json(folder / _POOLING_FILE)
        for pooling, flag in _FLAGS.items():
            if config.get(flag) or _NAMES.get(str(config.get("pooling_mode"))) == pooling:
                return pooling
    family = checkpoint.read_json(folder / "config.json").get("model_type")
    return "mean" if family in heads.ENCODERS else "last"


def write(folder: Path, *, pooling: Pooling, width: int, max_length: int, query: str) -> None:
    """Describe an embedding model to sentence-transformers.

    Args:
        folder: where its weights lie.
        pooling: how token states become one vector.
        width: numbers of a vector.
        max_length: tokens of the longest text.
        query: text that stands before every query.
    """
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    flags = {flag: name == pooling for name, flag in _FLAGS.items()}
    contents: tuple[Any, ...] = (
        modules,
        {"word_embedding_dimension": width} | flags | {"include_prompt": True},
        {"max_seq_length": max_length, "do_lower_case": False},
        {"prompts": {"query": query, "document": ""}, "similarity_fn_name": "cosine"},
    )
    for name, content in zip(FILES, contents, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        write_text(folder / name, json.dumps(content, indent=2) + "\n")
