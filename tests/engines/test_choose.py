"""Which engine is chosen, and what is said about it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dialoop.core.device import find
from dialoop.core.env import home
from dialoop.core.errors import MachineError, UserError
from dialoop.core.events import Note
from dialoop.engines.choose import content_key, prepare
from dialoop.engines.convert import TIE_NATS, compare
from dialoop.engines.spec import EngineSettings

pytest.importorskip("openvino_genai")


def chosen(folder: Path, **settings: Any) -> tuple[str, str]:
    """The engine, and the note about it."""
    notes: list[Any] = []
    engine = prepare(
        folder, EngineSettings.model_validate({"device": "cpu"} | settings), notes.append
    )
    (note,) = [n.text for n in notes if isinstance(n, Note) and n.text.startswith("engine: ")]
    return engine._job.engine, note


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def remember(folder: Path, **check: Any) -> None:
    """Leave the result of a check in the cache, as a conversion would."""
    target = home() / "openvino" / content_key(folder)
    target.mkdir(parents=True)
    (target / "check.json").write_text(json.dumps({"num_tokens": 72, "difference": ""} | check))


def test_openvino_is_taken_once_it_has_been_checked(copy: Path) -> None:
    edit(copy, note="a checkpoint of its own")
    remember(copy, agrees=True)
    name, note = chosen(copy)
    assert (name, note) == (
        "openvino",
        "engine: openvino, checked against transformers token for token",
    )


def test_an_untried_family_runs_on_transformers(copy: Path) -> None:
    edit(copy, model_type="mistral")
    name, note = chosen(copy)
    assert name == "transformers"
    assert note.startswith("engine: transformers, because OpenVINO was not tried with model type")
    with pytest.raises(UserError, match="was not tried with model type `mistral`"):
        chosen(copy, engine="openvino")


def test_a_model_that_failed_its_check_is_never_served_by_openvino(copy: Path) -> None:
    edit(copy, note="another checkpoint")
    remember(copy, agrees=False, difference="token 3 after 'x': 5, where transformers has 6")
    name, note = chosen(copy)
    assert name == "transformers"
    assert "answers differ from transformers' (token 3 after 'x'" in note
    with pytest.raises(UserError, match="answers differ from transformers'"):
        chosen(copy, engine="openvino")


def test_other_weights_have_another_key(copy: Path, checkpoint: Path) -> None:
    assert content_key(copy) == content_key(checkpoint)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert content_key(copy) != content_key(checkpoint)


def test_settings_that_openvino_cannot_obey_are_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="OpenVINO has no fp16 on a CPU"):
        chosen(checkpoint, engine="openvino", dtype="fp16")
    with pytest.raises(UserError, match="OpenVINO runs on the CPU here"):
        chosen(checkpoint, engine="openvino", device="cuda")
    if not find("cpu").supports_bf16:
        with pytest.raises(MachineError, match="no bf16 arithmetic"):
            chosen(checkpoint, engine="openvino", dtype="bf16")


def test_a_length_beyond_the_models_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="max_length 600 is more than the 512 tokens"):
        chosen(checkpoint, max_length=600)


def test_the_check_finds_the_first_difference_that_is_no_tie() -> None:
    same = compare(["p"], [([1, 2, 3], [1.0, 1.0, 1.0])], [[1, 2, 3]])
    assert (same.agrees, same.num_tokens) == (True, 3)
    other = compare(["p", "q"], [([1], [1.0]), ([1, 2, 3], [1.0, 1.0, 1.0])], [[1], [1, 9, 3]])
    assert other.difference == "token 1 after 'q': 9, where transformers has 2"
    # After a tie the answers go apart for a good reason.
    tie = compare(["p"], [([1, 2, 3], [1.0, TIE_NATS / 2, 1.0])], [[1, 9, 8]])
    assert (tie.agrees, tie.num_tokens) == (True, 2)
