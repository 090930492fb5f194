"""The suite file: questions, and what their answers must be, contain, match or not contain."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any, Self

import yaml
from pydantic import field_validator, model_validator

from dialoop.chat.message import from_openai, message
from dialoop.core.errors import UserError
from dialoop.core.jobfile import parse
from dialoop.core.schema import Spec
from dialoop.evaluate import json_schema

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from dialoop.chat.message import Message


class Question(Spec, frozen=True):
    """One question of a suite."""

    id: str
    """Name in the report, once in a suite."""
    question: str | None = None
    """What the user asks; or give `messages`."""
    messages: tuple[dict[str, Any], ...] = ()
    """A dialogue in OpenAI's chat form that ends with the user's question."""
    system: str | None = None
    """System prompt before the question."""
    must_contain: tuple[str, ...] = ()
    """Words that must all be in the answer."""
    any_of: tuple[str, ...] = ()
    """Words of which at least one must be in the answer."""
    must_not_contain: tuple[str, ...] = ()
    """Words that must not be in the answer."""
    exact: str | None = None
    """The whole answer, for questions that have only one."""
    regex: str | None = None
    """Regular expression that must be found in the answer; `.` matches line ends too."""
    json_schema: dict[str, Any] | None = None
    """JSON Schema that the answer must fit: all of it, or what it holds in a code fence."""

    @field_validator("regex")
    @classmethod
    def _compiles(cls, regex: str | None) -> str | None:
        try:
            re.compile(regex or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return regex

    @field_validator("json_schema")
    @classmethod
    def _is_known(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            json_schema.refuse_unknown(schema)
        return schema

    @model_validator(mode="after")
    def _asks_and_checks(self) -> Self:
        if bool(self.question) == bool(self.messages):
            raise ValueError("give either `question` or `messages`")
        words = self.must_contain or self.any_of or self.must_not_contain
        if not words and (self.exact, self.regex, self.json_schema) == (None, None, None):
            raise ValueError(
                "give `must_contain`, `any_of`, `must_not_contain`, `exact`, `regex` or "
                "`json_schema`"
            )
        return self

    def dialogue(self) -> tuple[Message, ...]:
        """What the checkpoint is asked.

        Raises:
            UserError: `messages` are not a dialogue that ends with the user.
        """
        where = f"question `{self.id}`"
        turns = [from_openai(m, f"{where}: messages[{n}]") for n, m in enumerate(self.messages)]
        if self.question:
            turns.append(message("user", self.question))
        if turns[-1].role not in {"user", "tool"}:
            raise UserError(
                f"{where}: the dialogue ends with {turns[-1].role}",
                hint="let `messages` end with the user's question",
            )
        system = [message("system", self.system)] if self.system else []
        return (*system, *turns)


def load_suites(paths: Iterable[Path]) -> tuple[Question, ...]:
    """The questions of some suite files, in order.

    Raises:
        UserError: a file is missing or no suite, or two questions share an id.
    """
    questions = [question for path in paths for question in _load(path)]
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise UserError(f"two questions have the id `{question.id}`", hint="rename one of them")
        seen.add(question.id)
    return tuple(questions)


def problems(question: Question, answer: str) -> tuple[str, ...]:
    """What is wrong with an answer; empty when it passes.

    Case, spacing and full-width forms make no difference.
    """
    text = _plain(answer)
    found = [f"lacks `{word}`" for word in question.must_contain if _plain(word) not in text]
    if question.any_of and not any(_plain(word) in text for word in question.any_of):
        found.append("has none of " + ", ".join(f"`{word}`" for word in question.any_of))
    found += [f"contains `{word}`" for word in question.must_not_contain if _plain(word) in text]
    if question.exact is not None and _plain(question.exact) != text:
        found.append(f"is not `{question.exact}`")
    if question.regex is not None and not re.search(question.regex, answer, re.DOTALL):
        found.append(f"does not match `{question.regex}`")
    if question.json_schema is not None:
        found += _misfits(question.json_schema, answer)
    return tuple(found)


_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


def _misfits(schema: dict[str, Any], answer: str) -> list[str]:
    fenced = _FENCE.search(answer)
    try:
        value = json.loads(fenced[1] if fenced else answer)
    except ValueError as error:
        return [f"is no JSON ({error})"]
    return json_schema.problems(schema, value)


def _load(path: Path) -> list[Question]:
    try:
        text = path.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.strip()]
        is_jsonl = path.suffix in {".jsonl", ".ndjson"}
        items = [json.loads(line) for line in lines] if is_jsonl else yaml.safe_load(text)
    except OSError as error:
        raise UserError(
            f"cannot read suite `{path}`: {(error.strerror or str(error)).lower()}",
            hint="check the path",
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"cannot read suite `{path}`: {error}", hint="give YAML or JSON Lines in UTF-8"
        ) from error
    if not isinstance(items, list) or not items:
        raise UserError(
            f"suite `{path}` holds no list of questions",
            hint="write a list of entries with `id`, `question` and `must_contain`",
        )
    return [_question(item, f"suite `{path}`, entry {n}") for n, item in enumerate(items, 1)]


def _question(item: Any, where: str) -> Question:
    if not isinstance(item, dict):
        raise UserError(f"{where}: expected a mapping, got {type(item).__name__}")
    try:
        question = parse(Question, item)
        question.dialogue()
    except UserError as error:
        raise UserError(f"{where}: {error.args[0]}", hint=error.hint) from error
    return question


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
