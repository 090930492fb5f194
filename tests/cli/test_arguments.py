"""Words to settings: every shape of flag, and what is said of wrong ones."""

from pathlib import Path
from typing import Any

import pytest
from tests.core.example import Example
from tests.core.kinds.small import Small
from tests.core.kinds.whole import Whole

from dialoop.cli.arguments import parse
from dialoop.core import jobfile
from dialoop.core.errors import UserError


def job(*words: str, positional: str | None = None) -> Example:
    base = [] if any(w.startswith("--model") or w in {"-o"} for w in words) else ["--model=m"]
    if positional is None and not any(w.startswith(("--dataset", "dataset=")) for w in words):
        base += ["--dataset=d"]
    arguments = parse(Example, [*base, *words], positional)
    return jobfile.load(Example, arguments.file, arguments.settings)


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--optim.lr", "2e-5"], "optim", {"lr": 2e-5}),
        (["optim.lr=2e-5"], "optim", {"lr": 2e-5}),
        (["--lr=2e-5"], "optim", {"lr": 2e-5}),
        (["--optim.betas", "0.8", "0.9"], "optim", {"betas": (0.8, 0.9)}),
        (["--optim", "{lr: 3}"], "optim", {"lr": 3.0}),
        (["--no-pack"], "pack", False),
        (["--pack"], "pack", True),
        (["--pack", "false"], "pack", False),
        (["--pack=no"], "pack", False),
        (["--limit", "none"], "limit", None),
        (["--limit", "5"], "limit", 5),
        (["--model", "007"], "model", "007"),
        (["--model", "null"], "model", "null"),
        (["--model", "1e5"], "model", "1e5"),
        (["--model", "-1"], "model", "-1"),
        (["-o", "x"], "model", "x"),
        (["--model=a=b"], "model", "a=b"),
        (["--dataset", "a", "007", "null"], "dataset", ["a", "007", "null"]),
        (["--dataset", "a", "--dataset", "b"], "dataset", ["a", "b"]),
        (["dataset=[1e5, b]"], "dataset", ["1e5", "b"]),
        (["--dataset", "[a].jsonl"], "dataset", ["[a].jsonl"]),
        (["--dataset", "a", "pack=no"], "dataset", ["a"]),
        (["--validation", "0.2"], "validation", 0.2),
        (["--validation", "v.jsonl"], "validation", ["v.jsonl"]),
        (["--columns", '{"query": "问题"}'], "columns", {"query": "问题"}),
        (["--columns", "query=q", "response=a"], "columns", {"query": "q", "response": "a"}),
        (["--columns={query: q}"], "columns", {"query": "q"}),
        (["--checks", "whole", "{kind: small, rank: 3}"], "checks", [Whole(), Small(rank=3)]),
        (["--tuner", "whole"], "tuner", Whole()),
        (["--tuner.kind", "whole"], "tuner", Whole()),
        (["--tuner", "{kind: small, rank: 2}"], "tuner", Small(rank=2)),
        (["--train-type", "small", "--lora-rank", "64"], "tuner", Small(rank=64)),
        (["--dtype", "bf16", "--dtype", "fp32"], "dtype", "fp32"),
    ],
)
def test_values(words: list[str], field: str, value: Any) -> None:
    found = getattr(job(*words), field)
    if isinstance(value, dict) and field == "optim":
        assert {name: getattr(found, name) for name in value} == value
    else:
        assert found == value


def test_words_without_a_flag_are_the_job_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("limit: 4\n")
    assert job(str(file)).limit == 4
    assert job("--dataset", "a", str(file)).limit == 4


def test_words_without_a_flag_fill_the_positional_field(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.jsonl"
    odd.touch()
    file = tmp_path / "job.yaml"
    file.write_text("limit: 4\n")
    found = job("a", str(odd), str(file), "--", "--c", positional="dataset")
    assert found.dataset == ["a", str(odd), "--c"]
    assert found.limit == 4


def test_switches_are_not_fields() -> None:
    assert parse(Example, ["--json", "--dry-run", "-h"]).switches == {"json", "dry_run", "help"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modle", "x"], r"`--modle`: unknown flag; did you mean `--model`\?"),
        (["--no-model"], r"`--no-model`: unknown flag"),
        (["--rank", "3"], r"`--rank`: unknown flag; did you mean `--(lora_rank|tuner\.rank)`\?"),
        (["--model"], r"`--model`: needs a value \(text\)"),
        (["--model", "--pack"], r"`--model`: needs a value"),
        (["optim.lrr=3"], r"`optim\.lrr`: unknown field; did you mean `optim\.lr`\?"),
        (["a.yaml", "b.yaml"], r"`b\.yaml`: a job file is given already, `a\.yaml`"),
        (["--columns", "x"], r"`--columns`: expected a mapping such as .* got `x`"),
        (["--columns", "{a: ["], r"`--columns`: .* is neither JSON nor YAML"),
        (["--zzz", "--yyy"], r"2 problems:\n  `--zzz`: unknown flag\n  `--yyy`: unknown flag"),
    ],
)
def test_complaints(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Example, words)


def test_a_path_given_by_two_spellings_is_refused() -> None:
    with pytest.raises(UserError, match=r"`--lora_rank` and `--tuner.rank` both set `tuner.rank`"):
        job("--lora_rank", "3", "--tuner.rank", "4")


def test_a_wrong_value_is_reported_by_the_flag() -> None:
    with pytest.raises(UserError, match=r"^--lora_rank: input should be a valid integer"):
        job("--lora_rank", "many")
    with pytest.raises(UserError, match=r"^--train_type: unknown `smal`; did you mean `small`"):
        job("--train_type", "smal")
    with pytest.raises(UserError, match=r"^--pack: input should be a valid boolean.*got `maybe`"):
        job("--pack=maybe")


def test_a_single_positional_field_takes_one_word() -> None:
    with pytest.raises(UserError, match="`b`: one `model` is given already"):
        parse(Example, ["a", "b"], "model")
