"""New tokens for a checkpoint's tokenizer, special or plain, written so that others read them."""

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


class Pieces:
    """What the tokenizer of a checkpoint wrote new tokens with.

    Args:
        folder: the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)
        unknown = self._tokenizer.special_tokens.get("unk_token", "")
        self._unknown = self._tokenizer.token_id(unknown)

    def known(self, token: str) -> list[int] | None:
        """The ids of its pieces; None where one of them is unknown, or there are none."""
        ids = self._tokenizer.encode(token)
        return None if self._unknown in ids or not ids else ids


def copy_texts(folder: Path, output: Path) -> None:
    """Copy tokenizer, template and licence of a checkpoint."""
    for pattern in COMPANIONS:
        for file in folder.glob(pattern):
            shutil.copyfile(file, output / file.name)


def extend(folder: Path, output: Path, tokens: Sequence[str], words: Sequence[str] = ()) -> None:
    """Write the tokenizer of a checkpoint with more tokens.

    Args:
        folder: the checkpoint.
        output: an existing folder.
        tokens: text of the special ones.
        words: text of the plain ones.

    Raises:
        UserError: the tokenizer is of a kind that takes none.
    """
    copy_texts(folder, output)
    ids = token_ids(folder, [*tokens, *words])
    special = frozenset(tokens)
    if (output / "tokenizer.json").exists():
        _extend_fast(output / "tokenizer.json", ids, special)
    elif (output / "tokenizer.model").exists():
        _extend_pieces(output / "tokenizer_config.json", ids, special)
    else:
        raise UserError(
            f"tokens cannot be added to the tokenizer of `{folder}`",
            hint="use a checkpoint with tokenizer.json or tokenizer.model",
        )


def _extend_fast(path: Path, ids: dict[str, int], special: frozenset[str]) -> None:
    tokenizers: Any = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    added = [tokenizers.AddedToken(t, special=t in special, normalized=False) for t in ids]
    tokenizer.add_tokens(added)
    for token, number in ids.items():
        if tokenizer.token_to_id(token) != number:
            raise UserError(
                f"`{path}` has gaps in its ids: `{token}` would not be {number}",
                hint="leave tuner.new_tokens and tuner.new_words out",
            )
    tokenizer.save(str(path))


def _extend_pieces(path: Path, ids: dict[str, int], special: frozenset[str]) -> None:
    config = read_json(path)
    listed: dict[str, Any] = config.get("added_tokens_decoder") or {}
    for token, number in ids.items():
        flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
        listed[str(number)] = {"content": token, "special": token in special} | flags
    write_text(path, json.dumps(config | {"added_tokens_decoder": listed}, indent=2) + "\n")
