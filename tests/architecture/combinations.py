"""Every two settings of a training job, asked for together: which pairs are refused, and why."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, get_args

from dialoop.core import jobfile
from dialoop.core.errors import UserError
from dialoop.core.schema import family
from dialoop.train.spec import TrainJob

NEEDED: dict[str, dict[str, Any]] = {
    "grpo": {"rewards": [{"kind": "length"}]},
    "gkd": {"teacher": "starter"},
}
"""What objectives cannot do without."""
TWO = {"gpus": 2}
Settings = dict[str, Any]


def refusals() -> list[tuple[str, str, str]]:
    """Pairs that are refused: some values of one setting, of another, and why the first (it) is."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for (one, values), (other, others) in combinations(axes().items(), 2):
        for value, mine in values.items():
            for name, theirs in others.items():
                reason = why_not(mine | theirs)
                if reason and reason not in {why_not(mine), why_not(theirs)}:
                    words = reason.replace(value, "it")
                    found.setdefault((one, other, name, words), []).append(value)
    merged: dict[tuple[str, str, str, str], list[str]] = {}
    for (one, other, name, words), values in found.items():
        key = (one, ", ".join(values), other, words)
        merged.setdefault(key, []).append(name)
    return [
        (_cell(one, values.split(", ")), _cell(other, names), words)
        for (one, values, other, words), names in merged.items()
    ]


def axes() -> dict[str, dict[str, dict[str, Any]]]:
    """What can be chosen, as changes to a job by value; from the families and literal types."""
    found = {
        name: {kind: {name: {"kind": kind} | NEEDED.get(kind, {})} for kind in sorted(members)}
        for name, members in _families()
    }
    literals = {
        "parallel": TWO, "sequence_method": TWO | {"sequence_parallel": 2}, "overlong": {},
        "reference": {}, "activation_checkpointing": {},
    }  # fmt: skip
    for name, besides in literals.items():
        values = get_args(TrainJob.model_fields[name].annotation)
        found[name] = {value: {name: value} | besides for value in values if value != "auto"}
    return found


def why_not(changes: Settings) -> str:
    """The reason that a job with these settings is refused; empty when it is not."""
    base = {"model": "starter", "data": {"dataset": ["d.jsonl"]}, "output": "out"}
    try:
        jobfile.parse(TrainJob, base | changes)
    except UserError as error:
        return str(error.args[0]).removeprefix("job: ")
    return ""


def _families() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, folder in (
        ("objective", "objectives"), ("tuner", "tuners"), ("optimizer", "optimizers"),
    ):  # fmt: skip
        yield name, family(f"dialoop.train.{folder}")


def _cell(axis: str, values: list[str]) -> str:
    return f"{axis} " + ", ".join(f"`{value}`" for value in values)
