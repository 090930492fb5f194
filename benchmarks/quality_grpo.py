"""Does GRPO teach a small real model a form of answer that it does not give by itself?

A sentence names a quantity; the answer must be a JSON object with `answer` (the number) and `unit`,
and nothing around it. The reward is the built-in `json` one: a third for the object, a third for
each key, and a little for what comes near; the share of wholly right answers is told beside it and
counts nothing. Prints one JSON document: means on held-out prompts before and after, and the curve.

    python benchmarks/quality_grpo.py --seed 1 --output /tmp/grpo
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from pathlib import Path

from dialoop.core import events, jobfile
from dialoop.train.run import run
from dialoop.train.spec import TrainJob

THINGS = {
    "kilograms": ["The parcel weighs", "Her suitcase weighs", "The sack of rice weighs"],
    "metres": ["The rope measures", "Our fence is as long as", "The pool is as long as"],
    "litres": ["The tank holds", "This bucket holds", "The bottle contains"],
    "minutes": ["The film lasts", "The walk takes", "Lunch takes"],
    "euros": ["The lamp costs", "A ticket costs", "The repair costs"],
}
SYSTEM = 'Reply with a JSON object that has the keys "answer" and "unit".'


def records(count: int, seed: int) -> list[dict[str, object]]:
    """Prompts with the object that answers them, no sentence twice."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    whole = [
        {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"{start} {n} {unit}."},
            ],
            "solution": {"answer": n, "unit": unit},
        }
        for unit, starts in THINGS.items()
        for start in starts
        for n in range(2, 60)
    ]
    return chance.sample(whole, count)


def job(args: argparse.Namespace, data: Path, held_out: Path) -> TrainJob:
    """The job, as a recipe would write it."""
    keys = {"answer": "number", "unit": "string"}
    wanted = {"kind": "json", "keys": keys, "solution": "solution"}
    return jobfile.parse(TrainJob, {
        "model": args.model, "output": str(args.output / "run"), "seed": args.seed,
        "data": {"dataset": [str(data)], "validation": [str(held_out)]},
        "objective": {
            "kind": "grpo", "num_answers": args.answers, "num_prompts": args.prompts,
            "scale": "group", "clip_high": 0.28, "resamples": args.resamples,
            "rewards": [wanted, wanted | {"strict": True, "weight": 0.0}],
            "rollout": {"kind": args.rollout, "max_new_tokens": 24},
        },
        "tuner": {"kind": "lora", "rank": 16},
        "optim": {"lr": args.lr, "schedule": "constant", "warmup": 0.0},
        "max_length": 512, "batch_size": args.batch_size, "accumulate": 1, "max_steps": args.steps,
        "saving": {"eval_steps": args.steps, "save_steps": args.steps},
        "device": args.device, "dtype": args.dtype,
    })  # fmt: skip


def main() -> None:
    """Train, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--resamples", type=int, default=1)
    parser.add_argument("--rollout", default="policy")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    drawn = records(400, args.seed)
    paths = {"train": drawn[:388], "held_out": drawn[388:]}
    for name, part in paths.items():
        path = args.output / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, part)) + "\n", encoding="utf-8")
    started, curve = time.monotonic(), list[dict[str, float]]()

    def keep(event: events.Event) -> None:
        if isinstance(event, events.Metrics):
            seconds = round(time.monotonic() - started, 1)
            values = {name: round(value, 4) for name, value in event.values.items()}
            curve.append({"step": event.step, "seconds": seconds} | values)
            print(json.dumps(curve[-1]), flush=True)

    wanted = job(args, args.output / "train.jsonl", args.output / "held_out.jsonl")
    run(wanted, keep)
    steps = [point for point in curve if "reward" in point]
    held_out = [point for point in curve if "validation_reward" in point]
    print(json.dumps({
        "seed": args.seed, "steps": len(steps), "seconds": round(time.monotonic() - started, 1),
        "first_reward": steps[0]["reward"],
        "last_rewards": round(sum(p["reward"] for p in steps[-5:]) / len(steps[-5:]), 4),
        "held_out_reward": [point["validation_reward"] for point in held_out],
        "held_out_right": [point["validation_reward_json_2"] for point in held_out],
        "curve": curve,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
