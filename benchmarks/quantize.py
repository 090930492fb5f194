"""Quantization beside llm-compressor: perplexity, seconds and memory on the same dialogues.

Both round the same model on the same documents, each in a process of its own; the perplexity of
what both wrote is measured by one function, on held-out answers. The peer needs an environment with
llmcompressor 0.14.0.1, whose python is named:

    OMP_NUM_THREADS=1 python benchmarks/quantize.py --model STARTER --dataset a.json b.json \
        --peer PEER/bin/python --group 64 --out result.json
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

CASES = ("gptq", "awq", "int8", "fp8")


def job(args: argparse.Namespace, case: str, output: Path, check_tokens: int) -> Any:
    """What is asked of dialoop; few `check_tokens` where the check is not what is timed."""
    from dialoop.core.jobfile import parse
    from dialoop.quantize.spec import QuantizeJob

    grouped = {"group_size": args.group} if case in {"gptq", "awq"} else {}
    return parse(
        QuantizeJob,
        {
            "model": str(args.work / "model"),
            "method": {"kind": case, **grouped},
            "dataset": args.dataset,
            "output": str(output),
            "num_tokens": args.tokens,
            "check_tokens": check_tokens,
            "max_length": args.max_length,
            "device": args.device,
        },
    )


def as_llama(model: Path, folder: Path) -> None:
    """A copy under the family's plain name, which the peer's tables know."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        target = folder / file.name
        if file.suffix != ".py" and file.name != "config.json" and not target.exists():
            target.symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text())
    for key in ("auto_map", "bias", "qkv_bias"):
        config.pop(key, None)
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def material(args: argparse.Namespace) -> Any:
    """The calibration and held-out rows that dialoop draws."""
    from dialoop.chat.template import Template
    from dialoop.core.events import ignore
    from dialoop.quantize.calibrate import gather

    template = Template.from_folder(args.work / "model")
    asked = job(args, "gptq", args.work / "none", args.check_tokens)
    return gather(asked, template, args.tokens, ignore)


def ours(args: argparse.Namespace, case: str, output: Path) -> None:
    """Run dialoop; what is told of it ends before the check."""
    from dialoop.core.events import Event, Stage
    from dialoop.quantize.run import run

    marks: dict[str, float] = {}

    def emit(event: Event) -> None:
        if isinstance(event, Stage):
            marks[event.title] = time.perf_counter()
            if event.title == "check what was written":
                told(args, case, "dialoop", marks)
        print(event, file=sys.stderr)

    run(job(args, case, output, 64), emit)


def told(args: argparse.Namespace, case: str, name: str, marks: dict[str, float]) -> None:
    """Write down what the process has used so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    status = Path("/proc/self/status").read_text()  # ru_maxrss begins with what the parent had
    peak_kib = int(status.split("VmHWM:")[1].split()[0])
    facts = {
        "wall_s": marks["check what was written"] - marks["round the weights"],
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_rss_gib": peak_kib / 2**20,
    }
    (args.work / f"{name}-{case}.json").write_text(json.dumps(facts))


def recipe(case: str, group: int) -> list[Any]:
    """The peer's modifiers with its defaults."""
    quantization = import_module("compressed_tensors.quantization")
    modifiers = {
        name: import_module(f"llmcompressor.modifiers.{name}")
        for name in ("gptq", "quantization", "transform.awq", "transform.smoothquant")
    }
    kept = {"ignore": ["lm_head"]}

    def groups(*, symmetric: bool) -> dict[str, Any]:
        weights = quantization.QuantizationArgs(
            num_bits=4, group_size=group, symmetric=symmetric, strategy="group"
        )
        scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
        return {"config_groups": {"group_0": scheme}, **kept}

    solving = modifiers["gptq"].GPTQModifier
    rounding = modifiers["quantization"].QuantizationModifier
    if case == "gptq":
        return [solving(**groups(symmetric=True))]
    if case == "awq":
        scaling = modifiers["transform.awq"].AWQModifier
        return [scaling(), rounding(**groups(symmetric=False))]
    if case == "int8":
        smoothing = modifiers["transform.smoothquant"].SmoothQuantModifier
        return [
            smoothing(smoothing_strength=0.8),
            solving(targets="Linear", scheme="W8A8", **kept),
        ]
    return [rounding(targets="Linear", scheme="FP8_DYNAMIC", **kept)]


def peer(args: argparse.Namespace, case: str, output: Path) -> None:
    """Run llm-compressor on the documents that were written down."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cache: Any = import_module("llmcompressor.pipelines.cache")
    if not torch.accelerator.is_available():  # 0.14.0.1 pins memory without asking
        cache.IntermediatesCache.pin_memory = lambda *_, **__: None
    documents = json.loads((args.work / "documents.json").read_text())
    rows = {"input_ids": documents, "attention_mask": [[1] * len(ids) for ids in documents]}
    started = time.perf_counter()
    folder = args.work / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map=args.device)
    library: Any = import_module("llmcompressor")
    library.oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        dataset=Dataset.from_dict(rows),
        recipe=recipe(case, args.group),
        num_calibration_samples=len(documents),
        max_seq_length=args.max_length,
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(output, save_compressed=True)
    marks = {"round the weights": started, "check what was written": time.perf_counter()}
    told(args, case, "llmcompressor", marks)


def perplexity(args: argparse.Namespace, folder: Path, rows: Sequence[Any]) -> float:
    """Of a checkpoint on the labelled tokens of some rows."""
    import torch
    import torch.nn.functional as F

    from dialoop.core.device import find
    from dialoop.models import attention
    from dialoop.models.load import load_model, quantized_by
    from dialoop.quantize.check import reload

    read = load_model if quantized_by(folder) is None else reload  # activations are rounded, too
    model = read(folder, device=find(args.device), dtype="auto")
    attention.register()
    model.set_attn_implementation(attention.NAME)
    head: Any = model.get_output_embeddings()
    device = next(model.parameters()).device
    nats = count = 0.0
    with torch.no_grad():
        for row in rows:
            states = model.get_decoder()(**row.inputs(device)).last_hidden_state[0]
            for at in torch.from_numpy(row.labelled).split(512):
                logits = F.linear(states[(at - 1).to(device)], head.weight).float()
                targets = torch.from_numpy(row.ids)[at].to(device)
                weights = torch.from_numpy(row.weights)[at].to(device)
                losses = F.cross_entropy(logits, targets, reduction="none")
                nats, count = nats + float((losses * weights).sum()), count + float(weights.sum())
    return float(torch.tensor(nats / count).exp())


def child(args: argparse.Namespace, python: str, side: str, case: str, output: Path) -> Any:
    """Run one side in its own process."""
    words = [python, __file__, *sys.argv[1:], "--side", side, "--only", case, "--into", str(output)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)  # noqa: S603
    name = "dialoop" if side == "ours" else "llmcompressor"
    told_in = args.work / f"{name}-{case}.json"
    if done.returncode or not told_in.exists():
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    return json.loads(told_in.read_text())


def main() -> None:
    """Measure every case and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dataset", nargs="+", required=True)
    parser.add_argument("--peer", help="python of the peer's environment")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--check_tokens", type=int, default=32768)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--work", type=Path, default=Path("quantize-benchmark"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", choices=("ours", "peer"), help="of a child process")
    parser.add_argument("--only", help="case of a child process")
    parser.add_argument("--into", type=Path, help="output of a child process")
    args = parser.parse_args()
    if args.side:
        (ours if args.side == "ours" else peer)(args, args.only, args.into)
        return
    as_llama(args.model, args.work / "model")
    rows = material(args)
    documents = [
        row.ids[start:end].tolist()
        for row in rows.calibration
        for start, end in zip(row.bounds, row.bounds[1:], strict=False)
    ]
    (args.work / "documents.json").write_text(json.dumps(documents))
    base = perplexity(args, args.work / "model", rows.held_out)
    result: dict[str, Any] = {
        "group": args.group,
        "calibration_tokens": sum(map(len, documents)),
        "held_out_targets": sum(len(row.labelled) for row in rows.held_out),
        "perplexity": base,
    }
    sides = [("dialoop", "ours", sys.executable)]
    sides += [("llmcompressor", "peer", args.peer)] if args.peer else []
    for case in args.cases:
        for name, side, python in sides:
            output = args.work / f"{name}-{case}"
            facts = child(args, python, side, case, output)
            if "failed" not in facts:
                found = perplexity(args, output, rows.held_out)
                facts |= {"perplexity": found, "increase": found / base - 1}
            result.setdefault(case, {})[name] = facts
            args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
