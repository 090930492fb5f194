"""Help pages made from the catalog and the specs: verbs by group, fields by section and option."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from dialoop.core.fields import Field, by_path, fields
from dialoop.jobs.catalog import CATALOG, Group, JobKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from dialoop.core.schema import Spec

SWITCHES = (
    ("--json", "print one JSON document on stdout; progress goes to stderr"),
    ("--dry-run", "print the resolved job and the plan, and stop"),
    ("--verbose", "show the log"),
    ("--help", "show this page"),
)


def overview(version: str) -> RenderableType:
    """The page of `dialoop --help`: every verb by group."""
    from rich.console import Group as Page
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(f"dialoop {version}: from chat records to a tuned model behind a URL"),
        Text("\nusage: dialoop VERB [JOB.yaml] [--field value ...] [a.b=value ...]"),
    ]
    for group in get_args(Group):
        rows = [
            (_names(verb, kind), kind.summary)
            for verb, kind in CATALOG.items()
            if kind.group == group
        ]
        if rows:
            parts += [Text(f"\n{group}", style="bold"), _table(rows)]
    shells = [("completion bash|zsh|fish", "print the script that completes words in your shell")]
    parts += [
        Text("\nShell", style="bold"),
        _table(shells),
        Text("\nEvery verb", style="bold"),
        _table(SWITCHES),
        Text(
            "\nexit codes: 0 done, 1 a bug of ours, 2 the request is wrong, "
            "3 this machine lacks something, 4 an upstream failed, 130 interrupted"
        ),
    ]
    return Page(*parts)


def verb_page(verb: str, kind: JobKind) -> RenderableType:
    """The page of `dialoop VERB --help`: every field, common ones first."""
    from rich.console import Group as Page
    from rich.text import Text

    spec = kind.load_spec()
    parts: list[RenderableType] = [
        Text(f"dialoop {_names(verb, kind)}: {kind.summary}"),
        Text(f"\nusage: {usage(verb, kind)}"),
    ]
    for title, meaning, members in sections(spec):
        shown = [field for field in members if not _is_preset(field, kind)]
        if not shown:
            continue
        parts.append(Text(f"\n{title}", style="bold"))
        if meaning and title.split()[0] not in kind.preset:
            parts.append(Text(meaning))
        parts.append(_table((_flag(spec, field), _meaning(field)) for field in shown))
    parts += [Text("\nEvery verb", style="bold"), _table(SWITCHES)]
    return Page(*parts)


def usage(verb: str, kind: JobKind) -> str:
    """The usage line of a verb."""
    where = "[JOB.yaml]"
    if kind.positional:
        takes_many = by_path(kind.load_spec())[kind.positional].shape == "list"
        where = kind.positional.upper() + (" ..." if takes_many else "")
    return f"dialoop {verb} {where} [--field value ...] [a.b=value ...]"


def sections(spec: type[Spec]) -> list[tuple[str, str, list[Field]]]:
    """Title, meaning and fields of each part of a page: plain fields, sections, options."""
    common: list[Field] = []
    named: dict[str, tuple[str, list[Field]]] = {}
    for field in fields(spec):
        section = field.path.rpartition(".")[0]
        if field.shape == "section":
            named[field.path] = (field.meaning, [])
        elif field.is_required and not field.option:
            common.append(field)
        elif field.option:
            title = field.option.replace("=", " ")
            _, members = named.setdefault(title, (f"with --{title}", []))
            if field.path not in {known.path for known in members}:  # two options may hold it
                members.append(field)
        elif section in named:
            named[section][1].append(field)
        else:
            common.append(field)
    common.sort(key=lambda field: not field.is_required)
    parts = [(title, meaning, members) for title, (meaning, members) in named.items()]
    return [("Fields", "", common), *_joined(parts)]


def _joined(parts: list[tuple[str, str, list[Field]]]) -> list[tuple[str, str, list[Field]]]:
    """The parts with options of one family that have the same fields in one: `lora | qlora`."""
    joined: list[tuple[str, str, list[Field]]] = []
    for title, meaning, members in parts:
        family, _, kind = title.partition(" ")
        if joined and kind and joined[-1][0].partition(" ")[0] == family:
            before, said, others = joined[-1]
            if [replace(field, option="") for field in others] == [
                replace(field, option="") for field in members
            ]:
                joined[-1] = (f"{before} | {kind}", f"{said} or {kind}", others)
                continue
        joined.append((title, meaning, members))
    return joined


def spellings(spec: type[Spec], field: Field) -> list[str]:
    """Every flag that sets a field, the canonical one first."""
    short = [
        alias for alias, path in spec.aliases.items() if path.removesuffix(".kind") == field.path
    ]
    flags = [f"-{name}" if len(name) == 1 else f"--{name}" for name in short]
    return [f"--{field.path}", *flags]


def _is_preset(field: Field, kind: JobKind) -> bool:
    """Whether the verb has settled this field, or chosen another option than the field's."""
    for name, value in kind.preset.items():
        if field.path == name:
            return True
        if field.option.startswith(f"{name}="):
            return field.option != f"{name}={value['kind']}"
    return False


def _flag(spec: type[Spec], field: Field) -> str:
    canonical, *others = spellings(spec, field)
    return "\n".join([canonical, *(f"    {other}" for other in others)])


def _meaning(field: Field) -> str:
    default = "required" if field.is_required else f"default: {field.default}"
    meaning = " ".join(field.meaning.split())
    return f"{meaning} [{field.type}; {default}]".lstrip()


def _names(verb: str, kind: JobKind) -> str:
    return f"{verb} ({', '.join(kind.also)})" if kind.also else verb


def _table(rows: Iterable[tuple[str, str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=24, max_width=44, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    for name, meaning in rows:
        table.add_row(Text(f"  {name}", style="cyan"), Text(meaning))
    return table
