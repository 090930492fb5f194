"""Answers that keep a JSON Schema: schemas to grammars, and the tokens that a grammar allows.

By xgrammar, which OpenVINO GenAI has inside, too, in an older version whose spelling of grammars
`ebnf` writes. JSON is written as `json.dumps` does: free white space would let a small model write
nothing else until its tokens run out.

V is the model's vocabulary, as wide as its logits.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import MachineError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from dialoop.chat.tokenizer import Tokenizer

_SPELLING: dict[str, Any] = {"any_whitespace": False, "separators": (", ", ": ")}
_OPEN_REPEAT = re.compile(r"""("(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\])|\{(\d+), -1\}""", re.DOTALL)
"""Literals and character classes, which stay, or a repetition without an end."""


def ebnf(schema: str) -> str:
    """The grammar of a JSON Schema, in the spelling that OpenVINO GenAI reads.

    Raises:
        UserError: it is no JSON Schema, or has what xgrammar does not know.
        MachineError: xgrammar is missing.
    """
    return _OPEN_REPEAT.sub(lambda found: found[1] or f"{{{found[2]},}}", str(_grammar(schema)))


def _grammar(schema: str) -> Any:
    try:
        return _xgrammar().Grammar.from_json_schema(schema, **_SPELLING)
    except RuntimeError as error:
        reason = str(error).partition("] ")[2].partition(": ")[2].strip() or str(error)
        raise UserError(f"the JSON Schema cannot be kept: {reason.splitlines()[0]}") from error


@cache
def _xgrammar() -> Any:
    if find_spec("xgrammar") is None:
        raise MachineError(
            "answers that keep a schema need the package `xgrammar`",
            hint="pip install 'dialoop[structured]'",
        )
    return import_module("xgrammar")  # takes seconds


class Grammars:
    """Grammars over one vocabulary; a schema that was asked for before costs nothing.

    Args:
        tokenizer: the model's own.
        width: V, of the model's logits.
    """

    def __init__(self, tokenizer: Tokenizer, width: int) -> None:
        self._tokenizer = tokenizer
        self._width = width
        self._compiler: Any = None
        self._texts: tuple[bytes, ...] = ()

    def start(self, schema: str, stop_ids: tuple[int, ...]) -> Allowed:
        """A grammar at its beginning.

        Raises:
            UserError: it is no JSON Schema, or has what xgrammar does not know.
            MachineError: xgrammar is missing.
        """
        grammar = _grammar(schema)

        if self._compiler is None:
            texts = self._tokenizer.token_bytes(self._width)
            info = _xgrammar().TokenizerInfo(texts, vocab_size=self._width, stop_token_ids=[])
            self._compiler = _xgrammar().GrammarCompiler(info, max_threads=1)
        matcher = _xgrammar().GrammarMatcher(self._compiler.compile_grammar(grammar))
        return Allowed(matcher, stop_ids, self._width)


class Allowed:
    """The tokens that may come next in one answer.

    Args:
        matcher: xgrammar's, at the answer's beginning.
        stop_ids: tokens that end the answer, once it is whole.
        width: V.
    """

    def __init__(self, matcher: Any, stop_ids: tuple[int, ...], width: int) -> None:

        self._matcher = matcher
        self._stop_ids = list(stop_ids)
        self._bits: Tensor = _xgrammar().allocate_token_bitmask(1, width)
        self._matcher.fill_next_token_bitmask(self._bits)

    @property
    def is_whole(self) -> bool:
        """Whether the answer is finished and nothing can follow."""
        return self._matcher.is_completed() and not self._bits.any()

    def masked(self, logits: Tensor) -> Tensor:
        """The logits (V,), with minus infinity where a token may not come."""
        out = logits.clone()
        _xgrammar().apply_token_bitmask_inplace(out[None], self._bits.to(logits.device))
        if self._matcher.is_completed():
            out[self._stop_ids] = logits[self._stop_ids]
        return out

    def take(self, token: int) -> None:
        """Go on behind a token."""
        is_taken = self._matcher.accept_token(token)
        assert is_taken, "masked logits allow only what fits"  # noqa: S101
        self._matcher.fill_next_token_bitmask(self._bits)
