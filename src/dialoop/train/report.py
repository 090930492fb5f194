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

_STYLE = """
:root { color-scheme: light dark; --line: #2563eb; --edge: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1, td { overflow-wrap: anywhere; }
table { border-collapse: collapse; } td { padding: .2rem 1.2rem .2rem 0; }
figure { margin: 1.5rem 0; } svg { width: 100%; height: auto; border: 1px solid var(--edge); }
polyline { fill: none; stroke: var(--line); stroke-width: 2; }
text { font-size: 12px; fill: currentColor; }
pre { overflow: auto; padding: 1rem; border: 1px solid var(--edge); }
"""
_TITLES = {
    "loss": "Training loss",
    "validation_loss": "Held-out loss",
    "reward": "Mean reward of sampled answers",
    "validation_reward": "Mean reward on held-out prompts",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_s": "Tokens a second",
}


def write(job: TrainJob, result: TrainResult) -> None:
    """Write `report.html` from the run's event log."""
    curves = read_curves(job)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in _facts(result).items()
    )
    figures = "".join(_figure(_TITLES[n], curves[n]) for n in _TITLES if curves.get(n))
    model = job.model.rstrip("/").rpartition("/")[2]
    title = escape(f"{model}: {job.objective.kind} by {job.tuner.kind}")
    write_text(
        result.report,
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        f"<table>{rows}</table>{figures}<h2>Job</h2><pre>{escape(jobfile.dump(job))}</pre></html>\n",
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


def _figure(title: str, points: Points) -> str:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    spread, length = (high - low) or 1.0, (xs[-1] - xs[0]) or 1.0
    path = " ".join(
        f"{70 + 710 * (x - xs[0]) / length:.1f},{180 - 160 * (y - low) / spread:.1f}"
        for x, y in points
    )
    dot = "<circle cx=70 cy=180 r=3 />" if len(points) == 1 else ""
    return (
        f"<figure><figcaption>{title}</figcaption><svg viewBox='0 0 800 210'>"
        f"<text x=62 y=24 text-anchor=end>{high:.3g}</text>"
        f"<text x=62 y=184 text-anchor=end>{low:.3g}</text>"
        f"<text x=70 y=204>step {xs[0]:g}</text><text x=780 y=204 text-anchor=end>{xs[-1]:g}</text>"
        f"<polyline points='{path}'/>{dot}</svg></figure>"
    )
