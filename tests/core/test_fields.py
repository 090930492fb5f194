"""The flat view of a spec: paths, shapes, defaults."""

from tests.core.example import Example

from dialoop.core.fields import by_path, fields


def test_every_shape_is_recognised() -> None:
    shapes = {path: field.shape for path, field in by_path(Example).items()}
    assert shapes == {
        "model": "value",
        "dataset": "list",
        "tuner": "family",
        "tuner.rank": "value",
        "tuner.targets": "list",
        "objective": "family",
        "objective.rank": "value",
        "objective.targets": "list",
        "optim": "section",
        "optim.lr": "value",
        "optim.betas": "list",
        "pack": "flag",
        "dtype": "value",
        "limit": "value",
        "validation": "list",
        "checks": "list",
        "columns": "map",
    }


def test_defaults_are_written_as_a_user_would() -> None:
    defaults = {path: field.default for path, field in by_path(Example).items()}
    assert defaults["model"] is None
    assert defaults["tuner"] == "small"
    assert defaults["optim.betas"] == "0.9 0.95"
    assert defaults["pack"] == "yes"
    assert defaults["limit"] == "none"
    assert defaults["columns"] == "empty"


def test_options_know_whose_they_are_and_what_they_mean() -> None:
    rank = next(field for field in fields(Example) if field.path == "tuner.rank")
    assert (rank.option, rank.meaning) == ("tuner=small", "Rank of the update.")
    assert by_path(Example)["tuner"].choices == ("small", "whole")
    assert by_path(Example)["checks"].choices == ("small", "whole")
    assert by_path(Example)["checks"].type == "small | whole ..."
    assert by_path(Example)["dtype"].choices == ("auto", "bf16", "fp32")
