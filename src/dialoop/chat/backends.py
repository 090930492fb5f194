"""Vocabularies: the `tokenizers` package, SentencePiece, or what transformers can read."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from dialoop.core.errors import MachineError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Framed:
    """A text, or a pair of texts, as encoders read it: `[CLS] text [SEP]`, say."""

    ids: list[int]
    second: int
    """Where the second text begins; 0 where there is none."""
    tail: int
    """Tokens that close it, behind the last text."""


class Backend(Protocol):
    """What `Tokenizer` asks of the thing that knows the vocabulary."""

    def encode(self, text: str) -> list[int]:
        """Token ids; added tokens in the text are recognised, none is put in."""
        ...

    def frame(self, first: str, second: str | None) -> Framed:
        """Token ids with the special tokens that the checkpoint puts around texts."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Text of the ids."""
        ...

    def token_id(self, token: str) -> int | None:
        """Id of a token, or None when the vocabulary lacks it."""
        ...

    def pieces(self) -> list[bytes]:
        """What each id writes, in UTF-8.

        Raises:
            UserError: this kind of vocabulary does not say.
        """
        ...

    @property
    def vocab_size(self) -> int:
        """Largest id plus one."""
        ...

    @property
    def added(self) -> dict[int, tuple[str, bool]]:
        """Tokens outside the learned vocabulary: id to (text, whether it is special)."""
        ...

    @property
    def adds_bos(self) -> bool:
        """Whether plain text begins with the bos token, as the checkpoint's files have it."""
        ...


class FastBackend:
    """The Rust tokenizer that `tokenizer.json` describes.

    Args:
        path: the file.
        config: `tokenizer_config.json`, whose added tokens join those of the file.
    """

    def __init__(self, path: Path, config: Json) -> None:
        tokenizers: Any = importlib.import_module("tokenizers")
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise UserError(
                f"`{path}` is not a tokenizer file ({error})",
                hint="fetch the checkpoint again",
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        known = self._tokenizer.get_added_tokens_decoder()
        for number, token in sorted(declared_tokens(config).items()):
            if number not in known:
                added = tokenizers.AddedToken(
                    token["content"],
                    special=bool(token.get("special")),
                    lstrip=bool(token.get("lstrip")),
                    rstrip=bool(token.get("rstrip")),
                    normalized=bool(token.get("normalized")),
                )
                self._tokenizer.add_tokens([added])
        self.added: dict[int, tuple[str, bool]] = {
            number: (str(token.content), bool(token.special))
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
        }

    def encode(self, text: str) -> list[int]:
        """Token ids of the text alone: no template of the post-processor applies."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def frame(self, first: str, second: str | None) -> Framed:
        """Token ids with what the post-processor's template puts around the texts."""
        encoded = self._tokenizer.encode(first, second)
        owners: list[int | None] = encoded.sequence_ids
        last = 0 if second is None else 1
        tail = next((n for n, owner in enumerate(reversed(owners)) if owner == last), 0)
        return Framed(encoded.ids, owners.index(1) if 1 in owners else 0, tail)

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Text of the ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int | None:
        """Id of a token, or None."""
        return self._tokenizer.token_to_id(token)

    def pieces(self) -> list[bytes]:
        """What each id writes, by the kind of the file's decoder."""
        spelt: Json = json.loads(self._tokenizer.to_str())
        decoder: Json = spelt.get("decoder") or {}
        steps = {decoder.get("type"), *(step["type"] for step in decoder.get("decoders", ()))}
        if not steps & {"ByteLevel", "Metaspace", "ByteFallback"}:
            raise _no_pieces()
        read = _byte_level if "ByteLevel" in steps else _spaced
        texts = (self._tokenizer.id_to_token(n) or "" for n in range(self.vocab_size))
        return [read(text) for text in texts]

    @property
    def vocab_size(self) -> int:
        """Largest id plus one."""
        return max([self._tokenizer.get_vocab_size(), *(n + 1 for n in self.added)])

    @property
    def adds_bos(self) -> bool:
        """Whether the post-processor puts a token before the text."""
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        return whole[:1] != plain[:1]


class SentencePieceBackend:
    """A SentencePiece model with added tokens, as InternLM3 and the first Llamas ship.

    Text is cut at the added tokens and each stretch goes through the model's own normaliser:
    the same as `tokenization_internlm3.py` does.

    Args:
        path: `tokenizer.model`.
        config: `tokenizer_config.json`.
    """

    def __init__(self, path: Path, config: Json) -> None:
        try:
            module = importlib.import_module("sentencepiece")
        except ImportError as error:
            raise MachineError(
                f"`{path}` needs the sentencepiece package, which is not installed",
                hint="pip install sentencepiece",
            ) from error
        try:
            self._model: Any = module.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"`{path}` is not a SentencePiece model ({error})",
                hint="fetch the checkpoint again",
            ) from error
        self.added: dict[int, tuple[str, bool]] = {
            n: (self._model.id_to_piece(n), True)
            for n in range(self._model.get_piece_size())
            if self._model.is_control(n)
        }
        for number, token in declared_tokens(config).items():
            self.added[number] = (token["content"], bool(token.get("special")))
        self._added_ids = {text: number for number, (text, _) in self.added.items()}
        longest = sorted(self._added_ids, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest))})") if longest else None
        self.adds_bos = bool(config.get("add_bos_token", True))

    @property
    def defaults(self) -> dict[str, str]:
        """The model's own bos, eos and unk, for a checkpoint whose config does not name them."""
        ids = {
            "bos_token": self._model.bos_id(),
            "eos_token": self._model.eos_id(),
            "unk_token": self._model.unk_id(),
        }
        return {name: self._model.id_to_piece(n) for name, n in ids.items() if n >= 0}

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        out: list[int] = []
        for piece in self._cut.split(text) if self._cut else [text]:
            if piece in self._added_ids:
                out.append(self._added_ids[piece])
            elif piece:
                out += self._model.encode(piece)
        return out

    def frame(self, first: str, second: str | None) -> Framed:
        """Token ids behind the bos token, where the checkpoint puts one."""
        ids = [self._model.bos_id(), *self.encode(first)] if self.adds_bos else self.encode(first)
        return (
            Framed(ids, 0, 0) if second is None else Framed(ids + self.encode(second), len(ids), 0)
        )

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Text of the ids."""
        out: list[str] = []
        plain: list[int] = []
        for number in ids:
            if number not in self.added:
                plain.append(int(number))
                continue
            text, special = self.added[number]
            if skip_special and special:
                continue
            out += [self._model.decode(plain), text]
            plain = []
        return "".join([*out, self._model.decode(plain)])

    def token_id(self, token: str) -> int | None:
        """Id of a token, or None."""
        if token in self._added_ids:
            return self._added_ids[token]
        number = self._model.piece_to_id(token)
        return number if self._model.id_to_piece(number) == token else None

    def pieces(self) -> list[bytes]:
        """What each id writes."""
        size = self._model.get_piece_size()
        return [_spaced(self._model.id_to_piece(n)) for n in range(size)]

    @property
    def vocab_size(self) -> int:
        """Largest id plus one."""
        return max([self._model.get_piece_size(), *(n + 1 for n in self.added)])


class CheckpointBackend:
    """Whatever transformers makes of the folder: other vocabularies, and code in the checkpoint.

    Args:
        folder: the checkpoint.
        trust_remote_code: let Python files in the folder run.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool) -> None:
        try:
            # By name: this package stays free of transformers for every checkpoint but these.
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise MachineError(
                f"the tokenizer of `{folder}` needs transformers, which is not installed",
                hint="pip install 'dialoop[train]'",
            ) from error
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"no tokenizer can be read from `{folder}`: {str(error).splitlines()[0]}",
                hint="give a folder with tokenizer.json or tokenizer.model; a checkpoint whose "
                "tokenizer is its own Python code also needs trust_remote_code",
            ) from error
        self.added: dict[int, tuple[str, bool]] = {
            n: (token.content, token.special)
            for n, token in self._tokenizer.added_tokens_decoder.items()
        }
        self.adds_bos = self._tokenizer.bos_token_id is not None and self._tokenizer("a").input_ids[
            :1
        ] == [self._tokenizer.bos_token_id]

    @property
    def defaults(self) -> dict[str, str]:
        """The special tokens by name."""
        return {k: v for k, v in self._tokenizer.special_tokens_map.items() if isinstance(v, str)}

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def frame(self, first: str, second: str | None) -> Framed:
        """Token ids with the special tokens that transformers adds."""
        ids: list[int] = self._tokenizer(first, second).input_ids
        is_special = self._tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        tail = next((n for n, special in enumerate(reversed(is_special)) if not special), 0)
        start = 0 if second is None else len(self._tokenizer(first).input_ids)
        return Framed(ids, start, tail)

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Text of the ids."""
        return self._tokenizer.decode(
            list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )

    def token_id(self, token: str) -> int | None:
        """Id of a token, or None."""
        return self._tokenizer.get_vocab().get(token)

    def pieces(self) -> list[bytes]:
        """Refused: code in the checkpoint may do anything with its tokens."""
        raise _no_pieces()

    @property
    def vocab_size(self) -> int:
        """Largest id plus one."""
        return max(self._tokenizer.get_vocab().values()) + 1


def _no_pieces() -> UserError:
    return UserError(
        "this checkpoint's vocabulary does not say what its tokens write one by one",
        hint="ask without a schema",
    )


def _spaced(piece: str) -> bytes:
    """A piece of SentencePiece: a low line is a space, `<0x0A>` is a byte."""
    if found := re.fullmatch("<0x([0-9A-F]{2})>", piece):
        return bytes.fromhex(found[1])
    return piece.replace("\u2581", " ").encode()


def _byte_level(piece: str) -> bytes:
    """A piece of a byte-level vocabulary: every character is a byte (Radford et al. 2019, GPT-2).

    A character that is none of the 256 is taken as it is.
    """
    known = _byte_letters()
    return b"".join(known.get(letter) or letter.encode() for letter in piece)


@cache
def _byte_letters() -> dict[str, bytes]:
    """Printable bytes stand for themselves, the others for the letters from 256 on, in order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [n for n in range(256) if n not in plain]
    letters = {chr(n): bytes([n]) for n in plain}
    return letters | {chr(256 + place): bytes([n]) for place, n in enumerate(others)}


def declared_tokens(config: Json) -> dict[int, Json]:
    """The added tokens that `tokenizer_config.json` lists, by id."""
    listed = cast("Json", config.get("added_tokens_decoder") or {})
    return {int(number): token for number, token in listed.items()}


def read_json(path: Path) -> Json:
    """A JSON object of the checkpoint, or an empty one when the file is absent.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"`{path}` is not JSON ({error})", hint="fetch the checkpoint again"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"`{path}` holds no JSON object", hint="fetch the checkpoint again")
    return cast("Json", value)
