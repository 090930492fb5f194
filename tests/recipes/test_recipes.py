"""Every recipe runs two steps, on a tiny model and data of its kind."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.tiny import make_tiny_checkpoint
from tests.train.parallel.world import World, world

from dialoop.core import events, jobfile
from dialoop.train.run import run
from dialoop.train.spec import TrainJob

PASSAGES = {"positive": "it costs {n} dollars", "negative": "a chair"}
PAIR = {"chosen": "{n} dollars", "rejected": "no"}
ANSWERS = {
    **dict.fromkeys(("rm", "dpo", "kto", "orpo", "simpo", "cpo"), PAIR),
    "classify": {"response": "{n} dollars", "label": "{kind}"},
    "embed": PASSAGES,
    "rerank": PASSAGES,
}
"""What stands beside the query for each kind of objective; a response for all others."""
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(2, tmp_path_factory.mktemp("meet")) as started:
        yield started


def on_a_rank(text: str) -> None:
    run(jobfile.parse(TrainJob, jobfile.read_yaml(text)), events.ignore)


@pytest.mark.filterwarnings("ignore::UserWarning")  # bitsandbytes tells which kernels a CPU lacks
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_two_steps(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Those for several cards on two processes, where two share a row if four do."""
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    make_tiny_checkpoint(tmp_path / "tiny")
    data = tmp_path / "data.jsonl"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    answers = ANSWERS.get(recipe.get("objective", {}).get("kind"), {"response": "{n} dollars"})
    lines = [
        {"query": f"price of lamp {n}"}
        | {name: text.format(n=n, kind=n % 3) for name, text in answers.items()}
        | {"solution": {"answer": n, "unit": "dollars"}}
        for n in range(200)
    ]
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    recipe["data"]["dataset"] = [str(data)]
    if "teacher" in recipe.get("objective", {}):
        recipe["objective"]["teacher"] = str(tmp_path / "tiny")
    changes = {"model": str(tmp_path / "tiny"), "output": str(tmp_path / "out"), "max_steps": 2}
    small = {"max_length": 256, "device": "cpu", "workers": 1, "dtype": "fp32", "accumulate": 1}
    if "parallel" in recipe:
        small |= {"gpus": 2, "offload": False}  # there is nowhere to move from a CPU
        small |= {"sequence_parallel": min(2, recipe.get("sequence_parallel", 1))}
    job = jobfile.parse(TrainJob, recipe | changes | small)
    if "parallel" in recipe:
        request.getfixturevalue("two")(on_a_rank, jobfile.dump(job))
    else:
        on_a_rank(jobfile.dump(job))
    assert [path.name for path in (job.output / "checkpoints").glob("*")][-1:] == ["step-000002"]
    assert (job.output / "report.html").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_files_of_a_recipe_are_there(path: Path) -> None:
    job = jobfile.load(TrainJob, path)
    for name in job.data.dataset:
        assert "/" not in name or (path.parents[1] / name).exists()
