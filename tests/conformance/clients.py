"""Smoke clients of other projects against a gateway before the scripted engine.

Each runs in an environment that npm or pip makes in a scratch folder, with pinned versions; one
that cannot be made is told as skipped, with the reason.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CHECKS = {
    "chat": "whole answer",
    "stream": "streamed answer",
    "stream_usage": "usage of a stream",
    "tool_call": "tool call",
    "json_schema": "`json_schema`",
    "embeddings": "embeddings",
    "not_found": "error of an absent model (404)",
    "unauthorized": "error of a wrong key (401)",
    "cut_stream": "a stream that the engine cuts is an error in the client",
}
NODE_PACKAGES = {
    "openai": "6.49.0",
    "ai": "5.0.277",
    "@ai-sdk/openai-compatible": "1.0.61",
    "zod": "3.25.76",
}
LANGCHAIN = "1.7.4"
TITLES = {
    "openai-node": f"openai-node {NODE_PACKAGES['openai']}",
    "vercel": f"Vercel AI SDK {NODE_PACKAGES['ai']}",
    "langchain": f"langchain-openai {LANGCHAIN}",
}
Results = dict[str, dict[str, str]]
"""What each client tells of each check."""


def run_all(open_url: str, keyed_url: str, model: str, folder: Path) -> Results:
    """Results of all clients.

    Args:
        open_url: base URL of a gateway that asks for no key.
        keyed_url: base URL of one that does.
        model: its name at both.
        folder: where environments are made.
    """
    urls = [open_url, keyed_url, model]
    results: Results = {}
    script = folder / "clients.mjs"
    reason = make_node(folder)
    for name in ("openai-node", "vercel"):
        results[name] = _skipped(reason) if reason else ask(["node", str(script), name, *urls])
    python = folder / "langchain" / "bin" / "python"
    reason = _make_python(folder / "langchain")
    script = HERE / "langchain_client.py"
    results["langchain"] = _skipped(reason) if reason else ask([str(python), str(script), *urls])
    return results


def make_node(folder: Path) -> str:
    """Install the packages of npm; why it cannot be, or nothing."""
    if not shutil.which("node") or not shutil.which("npm"):
        return "no node"
    shutil.copy(HERE / "clients.mjs", folder)
    package = {"private": True, "dependencies": NODE_PACKAGES}
    (folder / "package.json").write_text(json.dumps(package))
    return _install(["npm", "install", "--no-audit", "--no-fund"], folder)


def _make_python(folder: Path) -> str:
    """Install the packages of pip; why it cannot be, or nothing."""
    folder.mkdir()
    return _install([sys.executable, "-m", "venv", "."], folder) or _install(
        ["bin/python", "-m", "pip", "install", "-q", f"langchain-openai=={LANGCHAIN}"], folder
    )


def _install(command: list[str], folder: Path) -> str:
    try:
        subprocess.run(command, cwd=folder, capture_output=True, timeout=300, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        told = (error.stderr or b"").decode(errors="replace").strip().split("\n")[-1]
        return f"`{' '.join(command[:4])}` fails: {told}"
    return ""


def _skipped(reason: str) -> dict[str, str]:
    return dict.fromkeys(CHECKS, f"skipped: {reason}")


def ask(command: list[str]) -> dict[str, str]:
    """What a client's program tells; all checks fail with what it says where it tells nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        told = json.loads(done.stdout or "{}")
        reason = done.stderr[-300:]
    except subprocess.TimeoutExpired:
        told, reason = {}, "no end within 120 s"
    return {check: told.get(check, f"failed: {reason}") for check in CHECKS}


def section(results: Results) -> list[str]:
    """Lines of the page."""
    lines = ["", "## Clients", "", "Before the scripted engine.", ""]
    lines.append("| check | " + " | ".join(TITLES[name] for name in results) + " |")
    lines.append("| --- " * (1 + len(results)) + "|")
    for check, title in CHECKS.items():
        cells = [
            one[check].replace("|", "\\|").replace("\n", " ")[:160] for one in results.values()
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines
