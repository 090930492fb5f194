"""What is written from the sources: the map in both READMEs and the pages of docs/reference.

`generate.py` rewrites them (`make docs`); `generate.py --check` names those that are stale and
ends with 1 (`make check`).
"""

import ast
import re
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from tests.architecture.combinations import refusals

from dialoop.cli.help import sections, spellings, usage
from dialoop.core.fields import Field
from dialoop.core.schema import Spec
from dialoop.jobs.catalog import CATALOG, JobKind

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh.md")
REFERENCE = "docs/reference/cli.md"
RECIPES = "docs/reference/recipes.md"
COMBINATIONS = "docs/reference/combinations.md"
BEGIN = "<!-- map: begin (made by `make docs`) -->"
END = "<!-- map: end -->"


def generated(root: Path = ROOT) -> dict[Path, str]:
    """The text that each generated file should have."""
    texts = {
        root / REFERENCE: reference(),
        root / RECIPES: recipes(root / "recipes"),
        root / COMBINATIONS: combinations(),
    }
    block = f"{BEGIN}\n```\n" + "\n".join(package_map(root / "src" / "dialoop")) + f"\n```\n{END}"
    for name in READMES:
        path = root / name
        if path.exists():
            texts[path] = with_block(path.read_text(encoding="utf-8"), block)
    return texts


def with_block(text: str, block: str) -> str:
    """The text with what is between the markers replaced; a text without markers gets none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return before + block + after if begin and end else text


def package_map(folder: Path, depth: int = 0) -> list[str]:
    """Each file of a package with the first line of its docstring, folders after files."""
    lines: list[str] = []
    for path in sorted(folder.iterdir(), key=lambda p: (p.is_dir(), p.name)):
        source = path / "__init__.py" if path.is_dir() else path
        if path.name.startswith("__") or source.suffix != ".py" or not source.exists():
            continue
        tree = ast.parse(source.read_text(encoding="utf-8"))
        doc = (ast.get_docstring(tree) or "").split("\n")[0]
        name = f"{'  ' * depth}{path.name}{'/' * path.is_dir()}"
        lines.append(f"{name:34} {doc}".rstrip())
        if path.is_dir():
            lines += package_map(path, depth + 1)
    return lines


def reference() -> str:
    """The page of every verb and field."""
    parts = [
        "# Command line",
        "",
        "Made from the job specs by `make docs`: do not edit. `dialoop VERB --help` says it too.",
        "",
        "Every verb takes a job file, flags and `a.b=value`, in any order; flags win over the file."
        " Underscores and hyphens are the same. `${NAME}` in a job file is the variable NAME of the"
        " environment, `$${` a plain `${`. `--json` prints one JSON document on stdout,"
        " `--dry-run` the resolved job and the plan. Exit codes: 0 done, 1 a bug of ours, 2 the"
        " request is wrong, 3 this machine lacks something, 4 an upstream failed, 130 interrupted.",
    ]
    for verb, kind in sorted(CATALOG.items()):
        parts += ["", *_verb(verb, kind)]
    return "\n".join(parts) + "\n"


def recipes(folder: Path) -> str:
    """The page of the recipes: what each one's file says at its top."""
    lines = [
        "# Recipes",
        "",
        "Made by `make docs` from the first lines of each file: do not edit. Every recipe is a"
        " complete job; those that train are run for two steps by the tests.",
        "",
        *recipe_rows(folder),
    ]
    if (folder / "gateway").exists():
        lines += ["", "## The gateway", "", *recipe_rows(folder / "gateway", "gateway/")]
    return "\n".join(lines) + "\n"


def recipe_rows(folder: Path, place: str = "") -> list[str]:
    """A table of the recipes of one folder."""
    lines = ["| recipe | what it is | command |", "| --- | --- | --- |"]
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text(encoding="utf-8").splitlines()
        top = [line[1:].strip() for line in takewhile(lambda line: line.startswith("#"), text)]
        run = re.compile(r"Run: (dialoop .*?)(?:\s{2,}\((.*)\))?$")
        (command,) = (found[1] for line in top if (found := run.search(line)))
        words = " ".join(filter(None, (run.sub(r"\2", line).strip() for line in top)))
        cells = (f"[{path.stem}](../../recipes/{place}{path.name})", words, f"`{command}`")
        lines.append("| " + " | ".join(map(escaped, cells)) + " |")
    return lines


def escaped(cell: str) -> str:
    """Text that a table's cell can hold."""
    return cell.replace("|", "\\|")


def combinations() -> str:
    """The page of what cannot be asked for together."""
    lines = [
        "# What cannot be combined",
        "",
        "Made by `make docs`, which asks for every two settings together: do not edit. Every"
        " combination of an objective, tuner, optimizer, form of parallelism, way to attend over"
        " ranks and treatment of long dialogues trains, except these, which are refused before"
        " anything is loaded, with the reason given here (the left one is `it`).",
        "",
        "| together | with | reason |",
        "| --- | --- | --- |",
    ]
    for one, other, reason in refusals():
        lines.append(f"| {one} | {other} | {reason} |".replace("\n", " "))
    lines += [
        "",
        "What only the model's files can tell is refused on reading them: encoders (such as BERT)"
        " take no `sequence_parallel` and no `mlp_tile`; `sequence_method ulysses` needs as many"
        " query heads as ranks; sliding windows and attention dropout are not known to"
        " `sequence_parallel`; bases that are quantized already take `--tuner qlora` only.",
    ]
    return "\n".join(lines) + "\n"


def _verb(verb: str, kind: JobKind) -> Iterator[str]:
    spec = kind.load_spec()
    yield f"## `dialoop {verb}`"
    yield ""
    also = f" Also called {', '.join(f'`{name}`' for name in kind.also)}." if kind.also else ""
    yield f"{kind.summary[:1].upper()}{kind.summary[1:]}.{also} Usage: `{usage(verb, kind)}`"
    for title, meaning, members in sections(spec):
        if not members:
            continue
        yield ""
        if title != "Fields":
            yield f"**{title}** ({meaning.rstrip('.')})"
            yield ""
        yield "| field | type | default | meaning |"
        yield "| --- | --- | --- | --- |"
        for field in members:
            yield _row(spec, field)


def _row(spec: type[Spec], field: Field) -> str:
    names = ", ".join(f"`{name}`" for name in spellings(spec, field))
    default = "required" if field.is_required else f"`{field.default}`"
    cells = (names, field.type, default, " ".join(field.meaning.split()))
    return "| " + " | ".join(map(escaped, cells)) + " |"


def main() -> int:
    """Write, or with `--check` compare; returns the exit code."""
    stale = [
        (path, text)
        for path, text in generated().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        name = path.relative_to(ROOT)
        if "--check" in sys.argv:
            sys.stderr.write(f"{name} is stale: run `make docs`\n")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {name}\n")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
