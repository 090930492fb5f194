"""Fine-tune and align a model on real data, and measure held-out rows before and after.

    python benchmarks/quality_alignment.py --model DIR --data DIR --out FILE [--only dpo-zh]

`--data` is a folder with `sft/` and `preference/` as the cases below name them. Each case trains
LoRA adapters. The rate is chosen by the held-out loss on the split of one seed; then splits of
other seeds, which had no say, are held out and learned from anew. Of each run the held-out loss and
metrics before the first step and at the best measurement are written. Splits are by dialogue, so
that no opening is on both sides.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from dialoop.core import events, jobfile
from dialoop.train.run import run
from dialoop.train.spec import TrainJob

SEED = 42
"""Of the split on which the rate is chosen."""
ZH = ["preference/dpo_zh_500.jsonl", "preference/dpo_zh_demo.json"]
EN = ["preference/hh_rlhf_harmless_base_test.jsonl.gz", "preference/dpo_en_demo.json"]
CASES: dict[str, tuple[str, list[str]]] = {
    "sft-en": ("sft", ["sft/alpaca_en_demo.json"]),
    "sft-zh": ("sft", ["sft/alpaca_zh_demo.json", "sft/Belle_open_source_1k.json"]),
    "dpo-zh": ("dpo", ZH),
    "dpo-en": ("dpo", EN),
    "kto-zh": ("kto", ZH),
    "kto-en": ("kto", [*EN, "preference/kto_en_demo.json"]),
    "rm-zh": ("rm", ZH),
    "rm-en": ("rm", EN),
    "orpo-zh": ("orpo", ZH),
    "simpo-zh": ("simpo", ZH),
    "cpo-zh": ("cpo", ZH),
}
"""Objective and files; a preference data set serves KTO as well, its answers judged one by one."""


def job(name: str, arguments: argparse.Namespace, lr: float, seed: int, output: Path) -> TrainJob:
    """The training job of a case."""
    kind, files = CASES[name]
    return jobfile.parse(TrainJob, {
        "model": str(arguments.model), "output": str(output), "objective": {"kind": kind},
        "data": {
            "dataset": [f"{arguments.data / file}{arguments.rows}" for file in files],
            "validation": 0.2, "seed": seed,
        },
        "tuner": {"kind": "lora", "rank": 16}, "optim": {"lr": lr}, "seed": seed,
        "max_length": arguments.max_length, "overlong": "truncate", "accumulate": 2,
        "epochs": arguments.epochs,
        "device": arguments.device, "saving": {"eval_steps": 0},
    })  # fmt: skip


def measure(name: str, arguments: argparse.Namespace, lr: float, seed: int) -> dict[str, Any]:
    """Train once; its held-out numbers before, after each epoch, and at the best one."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = job(name, arguments, lr, seed, Path(folder) / "out")
        start = time.monotonic()
        result = run(wanted, events.ignore)
        lines = (wanted.output / "events.jsonl").read_text(encoding="utf-8").splitlines()
        points = [
            {"step": event["step"], **{
                key.removeprefix("validation_"): round(value, 4)
                for key, value in event["values"].items() if key.startswith("validation_")
            }}
            for event in map(json.loads, lines)
            if event["event"] == "metrics" and "validation_loss" in event["values"]
        ]  # fmt: skip
    best = min(points[1:], key=lambda point: point["loss"])
    return {
        "lr": lr, "seed": seed, "before": points[0], "after": best, "all": points,
        "steps": result.steps, "tokens": result.tokens, "seconds": round(time.monotonic() - start),
        "tokens_per_s": result.tokens_per_s,
    }  # fmt: skip


def main() -> None:
    """Run the cases and write one JSON document."""
    parser = argparse.ArgumentParser(description="Held-out rows before and after tuning.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", default="", help="`#100` takes so many of each file")
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--lrs", type=float, nargs="+", default=[5e-5, 1e-4, 2e-4])
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []

    def add(name: str, use: str, lr: float, seed: int) -> dict[str, Any]:
        kind, files = CASES[name]
        measured = measure(name, arguments, lr, seed)
        found.append({"case": name, "use": use, "objective": kind, "files": files} | measured)
        arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(
            name, use, lr, seed, measured["before"], "->", measured["after"],
            f"{measured['seconds']} s", flush=True,
        )  # fmt: skip
        return measured

    for name in arguments.only:
        tried = [add(name, "choose the rate", lr, SEED) for lr in arguments.lrs]
        lr = min(tried, key=lambda one: one["after"]["loss"])["lr"]
        for seed in arguments.seeds:
            add(name, "report", lr, seed)


if __name__ == "__main__":
    main()
