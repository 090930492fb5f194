"""Jinja as chat templates expect it: sandboxed, with the filters and tags of transformers."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from jinja2 import Template as Compiled
    from jinja2.parser import Parser
    from jinja2.runtime import Macro


class Generation(Extension):
    """The `{% generation %}` tag; it marks answers for other programs and leaves the text alone."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """A block with a scope of its own, as transformers makes it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("body_text"), [], [], body).set_lineno(line)

    def body_text(self, caller: Macro) -> str:
        """The text of the block."""
        return caller()


def render(source: str, **names: Any) -> str:
    """Render a chat template.

    Raises:
        UserError: the template is faulty, or refuses these messages.
    """
    try:
        return compiled(source).render(**names)
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(
            f"the chat template refuses this dialogue: {error}",
            hint="reorder or merge the messages as the model's card asks, or give another template",
        ) from error


@lru_cache(maxsize=32)
def compiled(source: str) -> Compiled:
    """The compiled template.

    Raises:
        UserError: a syntax error.
    """
    try:
        return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise UserError(
            f"the chat template is not Jinja: line {error.lineno}: {error.message}",
            hint="mend chat_template.jinja or fetch the checkpoint again",
        ) from error


def free_names(source: str) -> set[str]:
    """The variables that a template reads: `messages`, `tools`, ..."""
    compiled(source)
    return meta.find_undeclared_variables(_environment().parse(source))


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment: Any = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, loopcontrols],
        autoescape=False,
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005  the user's own date, as transformers has it
