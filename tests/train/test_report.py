"""The page of a run shows every metric, and what held-out rows gave before and after."""

import json
import re
from pathlib import Path

from dialoop.core import jobfile
from dialoop.train import report
from dialoop.train.spec import TrainJob, TrainResult

POINTS = [
    (0, {"validation_loss": 0.7, "validation_reward_margin": 0.0}),
    (1, {"loss": 0.6, "lr": 0.1, "kl": 0.2, "odd_name": 3.0}),
    (1, {"loss": 0.5, "lr": 0.1, "kl": 0.2, "odd_name": 3.0}),
    (1, {"validation_loss": 0.4, "validation_reward_margin": 1.25}),
    (2, {"loss": 0.3, "lr": 0.0, "kl": 0.1, "odd_name": 3.0}),
    (2, {"validation_loss": 0.45, "validation_reward_margin": 2.5}),
]


def page(folder: Path, points: list[tuple[int, dict[str, float]]]) -> str:
    job = jobfile.parse(
        TrainJob, {"model": "m/<b>", "data": {"dataset": ["d"]}, "output": str(folder)}
    )
    lines = [{"event": "metrics", "step": step, "values": values} for step, values in points]
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    result = TrainResult(
        output=folder, steps=2, epochs=1, tokens=10, seconds=1, tokens_per_s=10, train_loss=0.3,
        validation_loss=0.4, validation_before=0.7, best_step=1, peak_memory_bytes=0,
        report=folder / "report.html",
    )  # fmt: skip
    report.write(job, result)
    return result.report.read_text(encoding="utf-8")


def test_every_metric_has_a_figure_in_order(tmp_path: Path) -> None:
    captions = re.findall(r"<figcaption>([^<:]*)", page(tmp_path, POINTS))
    assert captions == [
        "Loss", "Chosen reward above the rejected one", "KL divergence from the reference",
        "Odd name", "Learning rate",
    ]  # fmt: skip


def test_held_out_rows_before_and_with_the_saved_weights(tmp_path: Path) -> None:
    cells = re.findall(r"<td class=number>([^<]*)", page(tmp_path, POINTS))
    assert cells == ["0.7000", "0.4000", "0.0000", "1.2500"]


def test_a_run_without_held_out_rows_says_nothing_of_them(tmp_path: Path) -> None:
    text = page(tmp_path, [point for point in POINTS if "loss" in point[1]])
    assert "Held-out rows" not in text
    assert "held out" not in text


def test_a_step_done_twice_counts_once(tmp_path: Path) -> None:
    text = page(tmp_path, [(1, {"loss": 9.0}), (1, {"loss": 2.0}), (2, {"loss": 1.0})])
    assert ">2</text>" in text
    assert ">9</text>" not in text


def test_names_are_escaped(tmp_path: Path) -> None:
    assert "<b>" not in page(tmp_path, POINTS).split("<svg")[0]
