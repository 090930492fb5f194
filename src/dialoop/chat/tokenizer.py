"""A checkpoint's tokenizer without transformers: ids, text, streamed text, end tokens, limits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dialoop.chat.backends import (
    Backend,
    CheckpointBackend,
    FastBackend,
    Framed,
    SentencePieceBackend,
    read_json,
)
from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Json = dict[str, Any]

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
NO_LIMIT = 10**9
"""Tokenizers without a limit write 1e30; anything this large means none."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Ids and text of one checkpoint; made by `load_tokenizer`."""

    backend: Backend
    special_tokens: dict[str, str]
    """By name (`bos_token`, ...), as chat templates see them."""
    eos_ids: tuple[int, ...]
    """Ids that end a generation, the tokenizer's own eos first; empty when none is named."""
    special_ids: frozenset[int]
    """Ids that plain text never holds."""
    added: dict[str, int]
    """Tokens that text is cut at, special or not."""
    max_length: int | None
    """Positions that the model has; None when the checkpoint does not say."""
    add_bos: bool
    """Whether plain text begins with the bos token."""
    digest: str
    """SHA-256 over the tokenizer's files and its end tokens."""

    @property
    def vocab_size(self) -> int:
        """Largest id plus one; the model's embedding may be larger."""
        return self.backend.vocab_size

    @property
    def bos_token(self) -> str | None:
        """Text of the token that begins a document."""
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """Text of the token that ends a document."""
        return self.special_tokens.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        """Text of the padding token."""
        return self.special_tokens.get("pad_token")

    def token_id(self, token: str) -> int | None:
        """Id of one token by its text, or None when the vocabulary lacks it."""
        return self.backend.token_id(token)

    def encode(self, text: str) -> list[int]:
        """Ids of the text; special tokens in it are recognised, none is added."""
        return self.backend.encode(text)

    def frame(self, first: str, second: str | None = None) -> Framed:
        """Ids of a text, or of two, with the special tokens that the checkpoint puts around them.

        The same as calling transformers' tokenizer with these texts.
        """
        return self.backend.frame(first, second)

    def encode_after(self, text: str) -> list[int]:
        """Ids of text that goes on from other text: no space is put before its first word."""
        for anchor in ("\n", ":", "x"):
            before = self.encode(anchor)
            whole = self.encode(anchor + text)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self.encode(text)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of the ids.

        Args:
            ids: any ids of the vocabulary.
            skip_special: leave special tokens out.
        """
        return self.backend.decode(ids, skip_special=skip_special)

    def token_bytes(self, num: int) -> list[bytes]:
        """What each id up to `num` writes, in UTF-8; added tokens and unused ids write nothing.

        Raises:
            UserError: the vocabulary is of a kind whose tokens are not known one by one.
        """
        pieces = self.backend.pieces()
        out = [b""] * max(num, len(pieces))
        for number, piece in enumerate(pieces):
            if number not in self.backend.added and number not in self.special_ids:
                out[number] = piece
        return out[:num]

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder for ids that come one by one."""
        return StreamDecoder(self, skip_special=skip_special)


class StreamDecoder:
    """Text of ids that come one by one, never with half a character in it.

    A character may be spread over several tokens; its bytes wait until it is whole. What was given
    out is never taken back, and the pieces joined equal the text decoded at once, without the
    character that the last id leaves unfinished.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids: list[int] = []
        self._window = 0  # ids before it no longer matter to what comes
        self._sent = 0  # ids before it have been given out

    def push(self, *ids: int) -> str:
        """Take ids and return the text that is now certain; often empty."""
        self._ids += ids
        before, whole = self._texts()
        if whole.endswith("\N{REPLACEMENT CHARACTER}") or len(whole) <= len(before):
            return ""
        self._window, self._sent = self._sent, len(self._ids)
        return whole[len(before) :]

    def finish(self) -> str:
        """Return what still waits; of a character cut in two by the end, nothing."""
        before, whole = self._texts()
        self._window = self._sent = len(self._ids)
        return whole[len(before) :].rstrip("\N{REPLACEMENT CHARACTER}")

    def _texts(self) -> tuple[str, str]:
        ids, skip = self._ids, self._skip_special
        before = self._tokenizer.decode(ids[self._window : self._sent], skip_special=skip)
        return before, self._tokenizer.decode(ids[self._window :], skip_special=skip)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Tokenizer:
    """Read the tokenizer of a checkpoint.

    `tokenizer.json` is read by the `tokenizers` package, a SentencePiece model by its own; for any
    other vocabulary transformers is asked, which takes seconds.

    Args:
        folder: the checkpoint.
        trust_remote_code: let Python files in the folder run, for tokenizers that are code.

    Raises:
        UserError: no tokenizer in the folder, or a damaged one.
        MachineError: a package that this tokenizer needs is missing.
    """
    if not folder.is_dir():
        raise UserError(
            f"`{folder}` is not a folder", hint="give the folder of a checkpoint in native format"
        )
    config = read_json(folder / "tokenizer_config.json")
    backend, defaults = _backend(folder, config, trust_remote_code)
    special = defaults | _special_tokens(folder, config)
    eos_ids = _eos_ids(folder, backend, special)
    named = (backend.token_id(text) for text in special.values())
    added = backend.added
    return Tokenizer(
        backend=backend,
        special_tokens=special,
        eos_ids=eos_ids,
        special_ids=frozenset(
            {n for n, (_, is_special) in added.items() if is_special}
            | {n for n in named if n is not None}
            | set(eos_ids)
        ),
        added={text: n for n, (text, _) in added.items()},
        max_length=_max_length(folder, config),
        add_bos=bool(config.get("add_bos_token", backend.adds_bos)) and "bos_token" in special,
        digest=_digest(folder, eos_ids),
    )


def _backend(folder: Path, config: Json, trust_remote_code: bool) -> tuple[Backend, dict[str, str]]:
    if (folder / "tokenizer.json").exists():
        return FastBackend(folder / "tokenizer.json", config), {}
    if (folder / "tokenizer.model").exists():
        pieces = SentencePieceBackend(folder / "tokenizer.model", config)
        return pieces, pieces.defaults
    other = CheckpointBackend(folder, trust_remote_code=trust_remote_code)
    return other, other.defaults


def _special_tokens(folder: Path, config: Json) -> dict[str, str]:
    listed = read_json(folder / "special_tokens_map.json") | config
    out: dict[str, str] = {}
    for name in NAMED:
        token: Any = listed.get(name)
        text = token.get("content") if isinstance(token, dict) else token  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(text, str):
            out[name] = text
    return out


def _eos_ids(folder: Path, backend: Backend, special: dict[str, str]) -> tuple[int, ...]:
    found: list[int] = []
    if (own := backend.token_id(special.get("eos_token", ""))) is not None:
        found.append(own)
    for file in ("generation_config.json", "config.json"):
        value: Any = read_json(folder / file).get("eos_token_id")
        found += [value] if isinstance(value, int) else list(value or ())
    return tuple(dict.fromkeys(found))


def _max_length(folder: Path, config: Json) -> int | None:
    model = read_json(folder / "config.json")
    text: Json = model.get("text_config") or model
    limit: Any = text.get("max_position_embeddings") or config.get("model_max_length")
    return int(limit) if isinstance(limit, int | float) and limit < NO_LIMIT else None


def _digest(folder: Path, eos_ids: tuple[int, ...]) -> str:
    digest = hashlib.sha256(repr(eos_ids).encode())
    for name in FILES:
        if (folder / name).exists():
            digest.update(name.encode())
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()
