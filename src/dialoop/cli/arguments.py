"""The words after a verb to settings of its job: flags, overrides, positionals."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from dialoop.core.errors import UserError
from dialoop.core.fields import Field, by_path
from dialoop.core.jobfile import Setting, did_you_mean, read_yaml

if TYPE_CHECKING:
    from dialoop.core.schema import Spec

SWITCHES = ("help", "json", "dry_run", "verbose")
"""Flags that every verb has, beside the fields of its spec."""
_BOOLEANS = {"true", "false", "yes", "no", "on", "off", "1", "0"}
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(e-?\d+)?$", re.IGNORECASE)


@dataclass(slots=True)
class Arguments:
    """What a command asks for."""

    file: Path | None = None
    settings: list[Setting] = field(default_factory=list[Setting])
    switches: set[str] = field(default_factory=set[str])


def parse(spec: type[Spec], words: list[str], positional: str | None = None) -> Arguments:
    """Read the words after a verb.

    Args:
        spec: the verb's schema; its fields and aliases are the flags.
        words: as the shell gave them.
        positional: the field that words without a flag go to; without one such a word is the
            job file.

    Raises:
        UserError: flags that are unknown or lack a value; all are reported at once.
    """
    reader = _Reader(spec, positional)
    reader.read(words)
    if reader.problems:
        listed = "\n  ".join(reader.problems)
        many = len(reader.problems) > 1
        raise UserError(
            f"{len(reader.problems)} problems:\n  {listed}" if many else listed,
            hint="add --help to see the flags of this verb",
        )
    return reader.arguments


def lookup(spec: type[Spec], name: str) -> tuple[str, Field] | None:
    """The path and the field behind a flag's name: a dotted path or an alias of the spec."""
    name = name.replace("-", "_")
    path = spec.aliases.get(name, name).removesuffix(".kind")
    found = by_path(spec).get(path)
    return (path, found) if found else None


class _Reader:
    """One pass over the words."""

    def __init__(self, spec: type[Spec], positional: str | None) -> None:
        self.arguments = Arguments()
        self.problems: list[str] = []
        self._spec = spec
        self._positional = positional
        self._lists: dict[str, list[str]] = {}
        self._words: list[str] = []

    def read(self, words: list[str]) -> None:
        self._words = list(words)
        while self._words:
            word = self._words.pop(0)
            if word == "--":
                while self._words:
                    self._bare(self._words.pop(0))
            elif word.startswith("-") and word != "-" and not _NUMBER.match(word):
                self._flag(word)
            elif not self._override(word):
                self._bare(word)
        for spelling, texts in self._lists.items():
            self._store(spelling, texts)

    def _flag(self, word: str) -> None:
        spelling, equals, text = word.partition("=")
        name = spelling.lstrip("-").replace("-", "_")
        if name == "h":
            name = "help"
        if name in SWITCHES and not equals:
            self.arguments.switches.add(name)
            return
        found = lookup(self._spec, name)
        if found is None and name.startswith("no_"):
            negated = lookup(self._spec, name.removeprefix("no_"))
            if negated and negated[1].shape == "flag" and not equals:
                self._add(spelling, negated[0], value=False)
                return
        if found is None:
            self.problems.append(f"`{spelling}`: unknown flag{self._guess(spelling, name)}")
            return
        path, target = found
        if equals:
            self._take(spelling, path, target, [text])
        elif target.shape == "flag":
            texts = [self._words.pop(0)] if self._next_is_boolean() else ["true"]
            self._take(spelling, path, target, texts)
        else:
            self._take(spelling, path, target, self._values(target))

    def _values(self, target: Field) -> list[str]:
        """The words after a flag that are its value."""
        texts: list[str] = []
        while self._words and self._is_value(self._words[0], target, first=not texts):
            texts.append(self._words.pop(0))
            if target.shape not in {"list", "map"}:
                break
        return texts

    def _is_value(self, word: str, target: Field, *, first: bool) -> bool:
        if word.startswith("-") and word != "-" and not _NUMBER.match(word):
            return False
        if first or target.shape not in {"list", "map"}:
            return True
        key, equals, _ = word.partition("=")
        if equals and lookup(self._spec, key):
            return False
        return self._positional is not None or not word.endswith((".yaml", ".yml"))

    def _take(self, spelling: str, path: str, target: Field, texts: list[str]) -> None:
        if not texts:
            self.problems.append(f"`{spelling}`: needs a value ({target.type})")
        elif target.shape in {"list", "map"}:
            self._lists.setdefault(spelling, []).extend(texts)
        else:
            self._convert(spelling, path, target, texts)

    def _store(self, spelling: str, texts: list[str]) -> None:
        found = lookup(self._spec, spelling.lstrip("-"))
        if found is None:
            raise AssertionError(spelling)
        self._convert(spelling, *found, texts)

    def _convert(self, spelling: str, path: str, target: Field, texts: list[str]) -> None:
        try:
            value = value_of(target, texts)
        except ValueError as error:
            self.problems.append(f"`{spelling}`: {error}")
            return
        self._add(spelling, path, value)

    def _add(self, spelling: str, path: str, value: Any) -> None:
        same = [old for old in self.arguments.settings if old.spelling != spelling]
        self.arguments.settings = [*same, Setting(path, value, spelling)]

    def _override(self, word: str) -> bool:
        """Take `a.b=value`; False when the word is something else."""
        key, equals, text = word.partition("=")
        if not equals:
            return False
        found = lookup(self._spec, key)
        if found:
            self._take(key, *found, [text])
            return True
        if Path(word).exists() or not re.fullmatch(r"[\w.-]+", key):
            return False
        names = [*by_path(self._spec), *self._spec.aliases]
        guess = did_you_mean(key.replace("-", "_"), names)
        self.problems.append(f"`{key}`: unknown field{guess}")
        return True

    def _bare(self, word: str) -> None:
        is_yaml = word.endswith((".yaml", ".yml"))
        if self._positional is not None and not (is_yaml and self.arguments.file is None):
            target = by_path(self._spec)[self._positional]
            if target.shape != "list" and self._positional in self._lists:
                self.problems.append(f"`{word}`: one `{self._positional}` is given already")
            self._lists.setdefault(self._positional, []).append(word)
        elif self.arguments.file is None:
            self.arguments.file = Path(word)
        else:
            self.problems.append(f"`{word}`: a job file is given already, `{self.arguments.file}`")

    def _next_is_boolean(self) -> bool:
        return bool(self._words) and self._words[0].lower() in _BOOLEANS

    def _guess(self, spelling: str, name: str) -> str:
        names = [*by_path(self._spec), *self._spec.aliases, *SWITCHES]
        near = did_you_mean(name, names)
        if near:
            return near.replace("mean `", "mean `--")
        last = [path for path in names if path.rpartition(".")[2] == name]
        return f"; did you mean `--{last[0]}`?" if last and spelling else ""


def value_of(target: Field, texts: list[str]) -> Any:
    """The plain data that the words after a flag stand for; the spec checks it later.

    Numbers stay text here: the spec reads them, and a text field keeps `007` as it is.

    Raises:
        ValueError: text that should be a mapping or a list is not one.
    """
    text = texts[0]
    if target.takes_none and not target.takes_text and text.lower() in {"none", "null"}:
        return None
    match target.shape:
        case "list":
            return _list(target, texts)
        case "map":
            return _map(texts)
        case "section":
            return _mapping(text)
        case "family":
            return _mapping(text) if text.startswith("{") else text
        case _:
            return text


def _list(target: Field, texts: list[str]) -> Any:
    if target.items == "section":
        return [_mapping(text) for text in texts]
    if target.items == "option":
        return [_mapping(text) if text.startswith("{") else {"kind": text} for text in texts]
    if len(texts) > 1:
        return texts
    (text,) = texts
    if target.takes_number and _NUMBER.match(text):
        return text
    if target.takes_text and not text.startswith("["):
        return text
    if text.startswith("[") and text.endswith("]"):
        items = _yaml(text, texts_only=True)
        return cast("list[Any]", items) if isinstance(items, list) else [text]
    return [text]


def _map(texts: list[str]) -> Any:
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if text.startswith("{") or not equals:
            found.update(_mapping(text))
        else:
            found[key] = value
    return found


def _mapping(text: str) -> dict[str, Any]:
    value = _yaml(text)
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004  the user's text, not a caller's type
            f'expected a mapping such as {{"name": "value"}} or name=value, got `{text}`'
        )
    return cast("dict[str, Any]", value)


def _yaml(text: str, *, texts_only: bool = False) -> Any:
    try:
        if texts_only:
            return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506  builds only text
        return json.loads(text)
    except yaml.YAMLError as error:
        raise ValueError(f"`{text}` is not YAML") from error
    except ValueError:
        return _plain_yaml(text)


def _plain_yaml(text: str) -> Any:
    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"`{text}` is neither JSON nor YAML") from error
