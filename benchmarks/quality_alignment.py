"""Fine-tune and align a model on real data, and measure held-out rows before and after.

    python benchmarks/quality_alignment.py --model DIR --data DIR --out FILE [--only dpo-zh]

`--data` is a folder with `sft/` and `preference/` as the cases below name them. Each case trains a
LoRA adapter and writes the validation split's loss and metrics before the first step and after the
last one, with the seed and everything that was asked. Splits are by dialogue, so that no opening is
on both sides.
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

CASES: dict[str, dict[str, Any]] = {
    "sft-en": {"kind": "sft", "files": ["sft/alpaca_en_demo.json"], "lr": 1e-3},
    "sft-zh": {
        "kind": "sft",
        "files": ["sft/alpaca_zh_demo.json", "sft/Belle_open_source_1k.json"],
        "lr": 1e-3,
    },
    "dpo-zh": {"kind": "dpo", "files": ["preference/dpo_zh_500.jsonl"], "lr": 1e-4},
    "kto-zh": {"kind": "kto", "files": ["preference/dpo_zh_500.jsonl"], "lr": 1e-4},
    "dpo-en": {
        "kind": "dpo",
        "files": ["preference/hh_rlhf_harmless_base_test.jsonl.gz", "preference/dpo_en_demo.json"],
        "lr": 1e-4,
    },
    "kto-en": {"kind": "kto", "files": ["preference/kto_en_demo.json"], "lr": 1e-4},
    "orpo-zh": {"kind": "orpo", "files": ["preference/dpo_zh_500.jsonl"], "lr": 1e-4},
    "simpo-zh": {"kind": "simpo", "files": ["preference/dpo_zh_500.jsonl"], "lr": 1e-4},
    "cpo-zh": {"kind": "cpo", "files": ["preference/dpo_zh_500.jsonl"], "lr": 1e-4},
}
SEED = 42


def job(name: str, arguments: argparse.Namespace, output: Path) -> TrainJob:
    """The training job of a case."""
    case = CASES[name]
    return jobfile.parse(TrainJob, {
        "model": str(arguments.model), "output": str(output), "objective": {"kind": case["kind"]},
        "data": {
            "dataset": [f"{arguments.data / file}{arguments.rows}" for file in case["files"]],
            "validation": 0.2, "seed": SEED,
        },
        "tuner": {"kind": "lora", "rank": 16}, "optim": {"lr": case["lr"]}, "seed": SEED,
        "max_length": arguments.max_length, "overlong": "truncate", "accumulate": 2,
        "epochs": arguments.epochs,
        "device": arguments.device, "saving": {"eval_steps": 0},
    })  # fmt: skip


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a case; its held-out numbers before, after each epoch, and at the best one."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = job(name, arguments, Path(folder) / "out")
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
        "case": name, **CASES[name], "before": points[0], "after": best, "all": points,
        "steps": result.steps, "tokens": result.tokens, "seconds": round(time.monotonic() - start),
        "tokens_per_s": result.tokens_per_s,
    }  # fmt: skip


def main() -> None:
    """Run the cases and write one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", default="", help="`#100` takes so many of each file")
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--epochs", type=float, default=3)
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for name in arguments.only:
        found.append(measure(name, arguments))
        arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(name, found[-1]["before"], "->", found[-1]["after"], f"{found[-1]['seconds']} s")


if __name__ == "__main__":
    main()
