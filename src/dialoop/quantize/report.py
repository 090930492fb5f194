"""Reports of a quantization: Markdown, and one HTML page that asks no other host for anything."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from dialoop.core import jobfile
from dialoop.core.files import write_text

if TYPE_CHECKING:
    from pathlib import Path

    from dialoop.quantize.spec import QuantizeJob, QuantizeResult

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1, td { overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { padding: .2rem 1.2rem .2rem 0; text-align: left; }
pre { overflow: auto; padding: 1rem; border: 1px solid #8884; white-space: pre-wrap; }
"""


def write(job: QuantizeJob, result: QuantizeResult, folder: Path) -> None:
    """Write report.json, report.md and report.html."""
    write_text(folder / "report.json", result.model_dump_json(indent=2) + "\n")
    write_text(folder / "report.md", markdown(job, result))
    write_text(folder / "report.html", html(job, result))


def facts(job: QuantizeJob, result: QuantizeResult) -> dict[str, str]:
    """What there is to say, by name."""
    budget = "none" if job.max_ppl_increase is None else f"{job.max_ppl_increase:.1%}"
    found = {
        "Verified": "yes"
        if result.verified
        else "NO: the perplexity rose by more than was allowed",
        "Model": job.model,
        "Method": result.method,
        "Layers": f"{result.num_layers} rounded, {result.num_kept} kept, and the output head",
        "Bits a weight": f"{result.bits_a_weight:.2f}, scales included",
        "Weights": f"{result.bytes / 1e6:,.1f} MB of {result.source_bytes / 1e6:,.1f} MB"
        f" ({result.source_bytes / result.bytes:.2f} times smaller)",
    }
    if result.perplexity is not None:
        found |= {
            "Held-out perplexity": f"{result.source_perplexity:.4f} -> {result.perplexity:.4f}"
            f" ({result.ppl_increase:+.2%})",
            "Allowed rise": budget,
        }
    found |= {
        "Same next token": f"{result.agreement:.2%} of {result.num_measured:,} places",
        "Divergence": f"{result.kl:.5f} nats a token",
        "Time": f"{result.seconds:,.0f} s",
        "Peak memory": f"{result.peak_bytes / 2**30:.2f} GiB",
    }
    return found


def markdown(job: QuantizeJob, result: QuantizeResult) -> str:
    """The report as GitHub-flavoured Markdown."""
    out = ["# Quantization", "", "| what | value |", "| --- | --- |"]
    out += [f"| {name} | {_inline(value)} |" for name, value in facts(job, result).items()]
    out += ["", *(f"> {note}" for note in result.notes), "", "## Who reads it", ""]
    out += ["| engine | reads it | note |", "| --- | --- | --- |"]
    out += [f"| {r.engine} | {_yes(r.reads)} | {_inline(r.note)} |" for r in result.readers]
    out += ["", "## An answer of the result", "", *_indented(result.answer)]
    out += ["", "## Job", "", *_indented(jobfile.dump(job))]
    return "\n".join(out) + "\n"


def html(job: QuantizeJob, result: QuantizeResult) -> str:
    """The report as one page with its style inside."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in facts(job, result).items()
    )
    readers = "".join(
        f"<tr><td>{escape(r.engine)}</td><td>{_yes(r.reads)}</td><td>{escape(r.note)}</td></tr>"
        for r in result.readers
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in result.notes)
    title = escape(f"{job.model.rstrip('/').rpartition('/')[2]}: {result.method}")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1><table>{rows}</table>{notes}"
        f"<h2>Who reads it</h2><table><tr><th>engine<th>reads it<th>note</tr>{readers}</table>"
        f"<h2>An answer of the result</h2><pre>{escape(result.answer)}</pre>"
        f"<h2>Job</h2><pre>{escape(jobfile.dump(job))}</pre></html>\n"
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _indented(text: str) -> list[str]:
    return [f"    {line}" for line in text.splitlines()]


def _inline(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
