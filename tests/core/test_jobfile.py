"""Job files: layers, old spellings, families, and every complaint by the path the user wrote."""

import re
from pathlib import Path

import pytest
from tests.core.example import Example
from tests.core.kinds.small import Small
from tests.core.kinds.whole import Whole

from dialoop.core import jobfile
from dialoop.core.errors import UserError
from dialoop.core.jobfile import Setting

BASE = "model: m\ndataset: [d]\n"


def load(tmp_path: Path, text: str, *settings: Setting, **preset: object) -> Example:
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    return jobfile.load(Example, file, settings, preset)


def test_settings_win_over_the_file(tmp_path: Path) -> None:
    job = load(tmp_path, BASE + "optim: {lr: 1.0}\n", Setting("optim.lr", "2e-5", "--lr"))
    assert job.optim.lr == 2e-5
    assert job.model == "m"


def test_aliases_hyphens_and_dotted_paths_work_in_a_file(tmp_path: Path) -> None:
    job = load(tmp_path, BASE + "lora-rank: 64\noptim.lr: 0.5\n")
    assert job.tuner == Small(rank=64)
    assert job.optim.lr == 0.5


def test_a_family_takes_a_bare_kind(tmp_path: Path) -> None:
    assert load(tmp_path, BASE + "tuner: whole\n").tuner == Whole()
    assert load(tmp_path, BASE + "train_type: whole\n").tuner == Whole()


def test_a_family_without_kind_takes_the_default_kind(tmp_path: Path) -> None:
    assert load(tmp_path, BASE + "tuner: {rank: 8}\n").tuner == Small(rank=8)


def test_kind_and_option_from_two_spellings_meet(tmp_path: Path) -> None:
    job = load(
        tmp_path,
        BASE,
        Setting("tuner", "small", "--train_type"),
        Setting("tuner.rank", "64", "--lora_rank"),
    )
    assert job.tuner == Small(rank=64)


def test_variables_of_the_environment_are_put_into_a_file_s_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "a: [b] ${HOME}")
    monkeypatch.setenv("RATE", "0.25")
    text = "model: x/${WHERE}\ndataset: ['${WHERE}', '$${WHERE}', '$WHERE $$ $$5']\n"
    job = load(tmp_path, text + "optim: {lr: '${RATE}'}\n")
    assert job.model == "x/a: [b] ${HOME}"
    assert job.dataset == ["a: [b] ${HOME}", "${WHERE}", "$WHERE $$ $$5"]
    assert job.optim.lr == 0.25


def test_settings_beside_a_file_are_taken_as_they_are(tmp_path: Path) -> None:
    """The shell has put its variables in already."""
    assert load(tmp_path, BASE, Setting("model", "${NOT_SET}", "--model")).model == "${NOT_SET}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: ${NOT_SET}\n", "the environment has no variable `NOT_SET`"),
        ("model: x\ndataset: ['a ${}']\n", "`${}` names no variable of the environment"),
        ("model: x\noptim: {lr: '${A-1}'}\n", "`${A-1}` names no variable of the environment"),
    ],
)
def test_a_variable_that_is_not_there_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(UserError, match=re.escape(words)):
        load(tmp_path, text)


def test_off_and_no_are_words_unless_a_boolean_is_wanted(tmp_path: Path) -> None:
    job = load(tmp_path, "model: off\ndataset: [no, yes, false_start]\npack: off\n")
    assert (job.model, job.dataset, job.pack) == ("off", ["no", "yes", "false_start"], False)


def test_words_that_begin_like_booleans_are_words() -> None:
    assert jobfile.read_yaml("false_margin: true_grit") == {"false_margin": "true_grit"}


def test_dump_reads_back_as_the_same_job(tmp_path: Path) -> None:
    job = load(tmp_path, BASE + "columns: {query: 问题}\nlimit: 3\nlora_rank: 2\n")
    assert load(tmp_path, jobfile.dump(job)) == job


def test_a_preset_is_what_the_verb_means(tmp_path: Path) -> None:
    assert load(tmp_path, BASE, objective={"kind": "whole"}).objective == Whole()
    text = jobfile.dump(load(tmp_path, BASE, objective={"kind": "whole"}))
    assert load(tmp_path, text, objective={"kind": "whole"}).objective == Whole()


CASES = {
    "optim:\n  rate: 1\nmodel: m\ndataset: [d]\n": r"^optim\.rate: unknown field$",
    BASE + "optim: {lrr: 1}\n": r"^optim\.lrr: unknown field; did you mean `lr`\?$",
    BASE + "lora_rnk: 1\n": r"^lora_rnk: unknown field; did you mean `lora_rank`\?$",
    BASE
    + "tuner: smal\n": r"^tuner: unknown `smal`; did you mean `small`\? \(known: small, whole\)$",
    BASE + "train_type: xyz\n": r"^train_type: unknown `xyz` \(known: small, whole\)$",
    BASE + "tuner: {kind: whole, rank: 3}\n": r"^tuner\.rank: unknown field",
    BASE + "lora_rank: many\n": r"^lora_rank: input should be a valid integer.*got `many`$",
    BASE + "dtype: bf61\n": r"^dtype: unknown `bf61`; did you mean `bf16`\? \(known: auto, bf16,",
    BASE + "limit: 0\n": r"^limit: input should be greater than or equal to 1, got `0`$",
    BASE + "limit: 13\n": r"^limit: 13 is unlucky$",
    "model: 007\ndataset: [d]\n": r"^model: expected text, got 7; put it in quotes$",
    "model: m\n": r"^dataset: required, but not given$",
    BASE + "optim: null\n": r"^optim: input should be a valid dictionary.*got `None`$",
    "dataset: [d]\n": r"^model: required, but not given$",
    "model: m\ndataset: []\n": r"^dataset: list should have at least 1 item",
    BASE + "validation: {a: 1}\n": r"^validation: input should be a valid number.* or .*list",
    BASE
    + "lora_rank: 1\ntuner: {rank: 1}\n": r"^`lora_rank` and `tuner\.rank` both set `tuner\.rank`",
    BASE + "optim: 3\noptim.lr: 1\n": r"^`optim\.lr` sets a part of `optim`, which is given as `3`",
    "- a\n": r"holds a list, not fields",
    "a: [\n": r"is not YAML",
}


@pytest.mark.parametrize(("text", "message"), CASES.items(), ids=list(CASES.values()))
def test_complaints(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert_matches(caught.value, message)


def assert_matches(error: UserError, message: str) -> None:
    import re

    assert re.search(message, str(error.args[0])), str(error)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 problems") as caught:
        load(tmp_path, "dataset: [d]\ntuner: smal\noptim: {lr: -1}\nzzz: 1\n")
    text = str(caught.value)
    assert all(path in text for path in ("model:", "tuner:", "optim.lr:", "zzz:"))


def test_a_verb_is_not_contradicted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`objective\.kind` is `small`, but this verb means"):
        load(tmp_path, BASE + "objective: {kind: small}\n", objective={"kind": "whole"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read job file `.*nothing.yaml`: no such file"):
        jobfile.load(Example, tmp_path / "nothing.yaml")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        jobfile.load(Example, tmp_path / "job.yaml")
