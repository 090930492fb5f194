"""Help from specs: common fields first, options under their family, aliases shown."""

import pytest
from rich.console import Console
from tests.core.example import Example

from dialoop.cli.help import sections, spellings, usage, verb_page
from dialoop.core.fields import by_path
from dialoop.jobs.catalog import CATALOG, JobKind
from dialoop.train.spec import TrainJob

KIND = JobKind(
    "tests.core.example:Example",
    "tests.core.example:run",
    "an example",
    "Train",
    preset={"objective": {"kind": "small"}},
)


def page(kind: JobKind) -> str:
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(verb_page("example", kind))
    return capture.get()


def test_sections_are_common_fields_then_sections_and_options() -> None:
    titles = [title for title, _, _ in sections(Example)]
    assert titles == [
        "Fields", "tuner small", "objective small", "optim",
    ]  # fmt: skip
    required = [field.path for field in sections(Example)[0][2][:2]]
    assert required == ["model", "dataset"]


def test_aliases_are_shown_with_the_canonical_name() -> None:
    assert spellings(Example, by_path(Example)["model"]) == ["--model", "-o"]
    assert spellings(Example, by_path(Example)["tuner.rank"]) == ["--tuner.rank", "--lora_rank"]
    lines = page(KIND).splitlines()
    after = next(n for n, line in enumerate(lines) if line.startswith("  --tuner.rank ")) + 1
    assert lines[after].startswith("    --lora_rank")


def test_every_field_is_on_the_page_but_what_the_verb_settles() -> None:
    text = page(KIND)
    for path in by_path(Example):
        if path not in {"objective", "tuner", "optim"}:
            assert f"--{path}" in text
    assert "--objective " not in text


@pytest.mark.parametrize("verb", CATALOG)
def test_every_verb_of_the_catalog_is_whole(verb: str) -> None:
    kind = CATALOG[verb]
    spec = kind.load_spec()
    paths = by_path(spec)
    assert all(field.meaning for field in paths.values()), [
        path for path, field in paths.items() if not field.meaning
    ]
    for alias, path in spec.aliases.items():
        assert path.removesuffix(".kind") in paths, f"{alias} names no field"
        assert alias not in paths or paths[alias].path == path, f"{alias} hides a field"
    assert kind.positional is None or kind.positional in paths
    assert callable(kind.load_run())
    assert kind.plan is None or callable(kind.load_plan())


def test_usage_tells_one_word_from_many() -> None:
    shown = [usage(verb, CATALOG[verb]) for verb in ("data inspect", "models pull", "sft")]
    assert [line.partition(" [--field")[0] for line in shown] == [
        "dialoop data inspect PATHS ...", "dialoop models pull NAME", "dialoop sft [JOB.yaml]",
    ]  # fmt: skip


def test_an_option_that_two_others_hold_is_told_once_and_by_its_own_field() -> None:
    found = {title: (meaning, fields) for title, meaning, fields in sections(TrainJob)}
    meaning, fields = found["objective.rollout policy"]
    assert meaning == "with --objective.rollout policy"
    paths = [field.path for field in fields]
    assert len(paths) == len(set(paths)) > 3
