"""New special tokens for a checkpoint's tokenizer, written so that others read them too."""

from __future__ import annotations

import importlib
import json
import shutil
from typing import TYPE_CHECKING, Any

from dialoop.chat.backends import read_json
from dialoop.chat.tokenizer import load_tokenizer
from dialoop.core.errors import UserError
from dialoop.core.files import write_text
from dialoop.models.merge import COMPANIONS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def token_ids(folder: Path, tokens: Sequence[str]) -> dict[str, int]:
    """The id of each token: its own where the vocabulary has it, otherwise the next free one."""
    tokenizer = load_tokenizer(folder)
    found: dict[str, int] = {}
    free = tokenizer.vocab_size
    for token in dict.fromkeys(tokens):
        known = tokenizer.token_id(token)
        found[token] = free if known is None else known
        free += known is None
    return found


def pieces(folder: Path, token: str) -> list[int]:
    """The ids that the tokenizer as it was writes the token with."""
    return load_tokenizer(folder).encode(token)


def copy_texts(folder: Path, output: Path) -> None:
    """Copy tokenizer, template and licence of a checkpoint."""
    for pattern in COMPANIONS:
        for file in folder.glob(pattern):
            shutil.copyfile(file, output / file.name)


def extend(folder: Path, output: Path, tokens: Sequence[str]) -> None:
    """Write the tokenizer of a checkpoint with more special tokens.

    Args:
        folder: the checkpoint.
        output: an existing folder.
        tokens: text of the tokens.

    Raises:
        UserError: the tokenizer is of a kind that takes none.
    """
    copy_texts(folder, output)
    ids = token_ids(folder, tokens)
    if (output / "tokenizer.json").exists():
        _extend_fast(output / "tokenizer.json", ids)
    elif (output / "tokenizer.model").exists():
        _extend_pieces(output / "tokenizer_config.json", ids)
    else:
        raise UserError(
            f"tokens cannot be added to the tokenizer of `{folder}`",
            hint="use a checkpoint with tokenizer.json or tokenizer.model",
        )


def _extend_fast(path: Path, ids: dict[str, int]) -> None:
    tokenizers: Any = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    added = [tokenizers.AddedToken(t, special=True, normalized=False) for t in ids]
    tokenizer.add_special_tokens(added)
    for token, number in ids.items():
        if tokenizer.token_to_id(token) != number:
            raise UserError(
                f"`{path}` has gaps in its ids: `{token}` would not be {number}",
                hint="leave tuner.new_tokens out",
            )
    tokenizer.save(str(path))


def _extend_pieces(path: Path, ids: dict[str, int]) -> None:
    config = read_json(path)
    listed: dict[str, Any] = config.get("added_tokens_decoder") or {}
    for token, number in ids.items():
        flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
        listed[str(number)] = {"content": token, "special": True} | flags
    write_text(path, json.dumps(config | {"added_tokens_decoder": listed}, indent=2) + "\n")
