"""A self-contained HTML page of a run: what it came to, its curves, its job."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

from dialoop.core import jobfile
from dialoop.core.files import write_text

if TYPE_CHECKING:
    from dialoop.train.spec import TrainJob, TrainResult

Points = list[tuple[float, float]]
HELD_OUT = "validation_"
"""What the names of metrics of the validation split begin with."""
HELD_OUT_LINE = "held-out"
FEW_POINTS = 30
"""Curves of so few points show each of them."""
_LEGEND = {"train": "training", HELD_OUT_LINE: "held out"}

_STYLE = """
:root { color-scheme: light dark; --train: #2563eb; --held-out: #d97706; --edge: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1, td { overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { padding: .2rem 1.2rem .2rem 0; text-align: left; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1.5rem 0; } svg { width: 100%; height: auto; border: 1px solid var(--edge); }
figcaption b { font-weight: inherit; }
.train { color: var(--train); } .held-out { color: var(--held-out); }
polyline { fill: none; stroke: currentColor; stroke-width: 2; } circle { fill: currentColor; }
text { font-size: 12px; fill: currentColor; }
pre { overflow: auto; padding: 1rem; border: 1px solid var(--edge); }
"""
_TITLES = {
    "loss": "Loss",
    "reward": "Mean reward",
    "reward_std": "Spread of the rewards in a group",
    "accuracy": "Accuracy",
    "reward_accuracy": "Pairs whose chosen answer is worth more",
    "reward_margin": "Chosen reward above the rejected one",
    "reward_chosen": "Reward of chosen answers",
    "reward_rejected": "Reward of rejected answers",
    "kl": "KL divergence from the reference",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_s": "Tokens a second",
}
"""Captions of metrics whose names do not say it all, in the order of the page; others follow."""
_LAST = ("lr", "grad_norm", "tokens_per_s")


def write(job: TrainJob, result: TrainResult) -> None:
    """Write `report.html` from the run's event log."""
    curves = read_curves(job)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in _facts(result).items()
    )
    figures = "".join(_figure(name, _lines(curves, name)) for name in _ordered(curves))
    model = job.model.rstrip("/").rpartition("/")[2]
    title = escape(f"{model}: {job.objective.kind} by {job.tuner.kind}")
    write_text(
        result.report,
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        f"<table>{rows}</table>{_held_out(curves, result)}{figures}"
        f"<h2>Job</h2><pre>{escape(jobfile.dump(job))}</pre></html>\n",
    )


def read_curves(job: TrainJob) -> dict[str, Points]:
    """Every metric of the run's log by name; a step that was done twice counts once."""
    curves: dict[str, dict[int, float]] = {}
    for line in (job.output / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "metrics":
            for name, value in event["values"].items():
                curves.setdefault(name, {})[event["step"]] = value
    return {name: sorted(points.items()) for name, points in curves.items()}


def _facts(result: TrainResult) -> dict[str, str]:
    facts = {
        "Saved in": str(result.output),
        "Steps": f"{result.steps:,} ({result.epochs:.2f} epochs)",
        "Tokens": f"{result.tokens:,}, none of them padding",
        "Time": f"{result.seconds / 60:.1f} minutes, {result.tokens_per_s:,.0f} tokens a second",
        "Training loss": f"{result.train_loss:.4f}, mean of the last epoch",
        "Peak memory": f"{result.peak_memory_bytes / 2**30:.2f} GiB",
    }
    if result.validation_loss is not None:
        best = f"{result.validation_loss:.4f}, at step {result.best_step}"
        facts["Held-out loss"] = f"{best}: these weights were saved"
    return facts


def _held_out(curves: dict[str, Points], result: TrainResult) -> str:
    """What the held-out rows gave before training, and with the weights that were saved."""
    before_after = {
        name: (points[0][1], dict(points).get(result.best_step or 0))
        for name, points in curves.items()
        if name.startswith(HELD_OUT) and points[0][0] == 0
    }
    rows = "".join(
        f"<tr><td>{escape(_title(name.removeprefix(HELD_OUT)))}</td>"
        f"<td class=number>{before:.4f}</td><td class=number>{after:.4f}</td></tr>"
        for name, (before, after) in before_after.items()
        if after is not None
    )
    if not rows:
        return ""
    return (
        "<h2>Held-out rows</h2><table><tr><th></th><th class=number>before</th>"
        f"<th class=number>after</th></tr>{rows}</table>"
    )


def _ordered(curves: dict[str, Points]) -> list[str]:
    """The metrics that get a figure: the known ones first, the loop's own last."""
    names = dict.fromkeys(name.removeprefix(HELD_OUT) for name in curves)
    known = [name for name in _TITLES if name in names and name not in _LAST]
    other = [name for name in names if name not in _TITLES]
    return [*known, *other, *(name for name in _LAST if name in names)]


def _lines(curves: dict[str, Points], name: str) -> dict[str, Points]:
    """The curves of one metric, by what they were measured on."""
    found = {"train": curves.get(name), HELD_OUT_LINE: curves.get(HELD_OUT + name)}
    return {on: points for on, points in found.items() if points}


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " ").capitalize())


def _figure(name: str, lines: dict[str, Points]) -> str:
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    spread, length = (high - low) or 1.0, (right - left) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return 70 + 710 * (x - left) / length, 180 - 160 * (y - low) / spread

    drawn = ""
    for on, points in lines.items():
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        drawn += f"<g class={on}><polyline points='{path}'/>"
        if len(points) <= FEW_POINTS:
            dots = (place(*point) for point in points)
            drawn += "".join(f"<circle cx={x:.1f} cy={y:.1f} r=3 />" for x, y in dots)
        drawn += "</g>"
    words = ", ".join(f"<b class={on}>{_LEGEND[on]}</b>" for on in lines)
    legend = f": {words}" if HELD_OUT_LINE in lines else ""
    return (
        f"<figure><figcaption>{escape(_title(name))}{legend}</figcaption>"
        f"<svg viewBox='0 0 800 210'>"
        f"<text x=62 y=24 text-anchor=end>{high:.3g}</text>"
        f"<text x=62 y=184 text-anchor=end>{low:.3g}</text>"
        f"<text x=70 y=204>step {left:g}</text><text x=780 y=204 text-anchor=end>{right:g}</text>"
        f"{drawn}</svg></figure>"
    )
