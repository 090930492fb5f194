"""What embedding and reranker training give on real questions and answers: nDCG@10 and MRR@10.

Queries must find their own passage among all of the task. Rows are split in three: `embed` and
`rerank` learn from the first part; their settings are chosen on the second; the third is measured
once with what was chosen, and with the baselines: the model as it was, the same with fresh rows for
the characters that it lacks, and BM25. The reranker orders what BM25 or the chosen embedding model,
whichever is better on the second part, finds first; a passage that is not among these counts as not
found.

Run: python benchmarks/quality_retrieval.py medical --model MINILM_FOLDER --data FILE.csv
     python benchmarks/quality_retrieval.py dialogues --model MINILM_FOLDER --data val.json.zip
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from retrieval_data import READERS, Task, bm25, characters, halves

from dialoop.chat.template import Template
from dialoop.core import events, jobfile
from dialoop.core.device import find
from dialoop.data.pack import best_fit
from dialoop.data.tokenize import shortened
from dialoop.data.units import Unit
from dialoop.evaluate.ranking import mrr, ndcg, recall
from dialoop.models.embeddings import pooling_of
from dialoop.models.load import load_model
from dialoop.train.batch import Step, collate
from dialoop.train.run import run
from dialoop.train.spec import TrainJob
from dialoop.train.view import View, use_packed_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dialoop.chat.template import Row
    from dialoop.train.batch import Batch

PLACES = 10
LENGTH = 256
"""Tokens of a text."""
PAIR_LENGTH = 320
"""Tokens of a query with its passage."""
CANDIDATES = 30
"""Passages that a reranker orders."""
MINED = 50
"""First passages of a query, of those to learn from, that its negatives are drawn from."""
SHARES = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Weights that the first order may have beside the reranker's."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How to train, apart from what every run has."""

    lr: float
    epochs: float = 20
    accumulate: int = 1
    new_words: bool = True
    halves: bool = False
    """Whether the two halves of every text to learn from are pairs, too."""
    objective: dict[str, Any] = field(default_factory=dict[str, Any])


EMBED = {
    "as it is": Setting(3e-4, new_words=False),
    "lr 1e-4": Setting(1e-4),
    "lr 3e-4": Setting(3e-4),
    "lr 1e-3": Setting(1e-3),
    "lr 3e-4, four times the batch": Setting(3e-4, accumulate=4),
    "lr 3e-4, 40 epochs": Setting(3e-4, epochs=40),
    "lr 3e-4, temperature 0.02": Setting(3e-4, objective={"temperature": 0.02}),
    "lr 3e-4, halves": Setting(3e-4, halves=True),
    "lr 1e-4, 5 epochs": Setting(1e-4, epochs=5),
}
RERANK = {
    "listwise, lr 1e-4": Setting(1e-4, 3),
    "listwise, lr 3e-4": Setting(3e-4, 3),
    "pointwise, lr 1e-4": Setting(1e-4, 3, objective={"loss_type": "pointwise"}),
    "listwise, lr 1e-4, 6 epochs": Setting(1e-4, 6),
}


def main() -> None:
    """Print one JSON document each time that more is known."""
    arguments = parse()
    task = READERS[arguments.task](arguments.data)
    if arguments.rows:
        task = fewer(task, arguments.rows)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(task, arguments.model, Path(name), arguments.device, arguments.threads)
        result = facts(bench) | {"arguments": " ".join(sys.argv[1:])}
        first = embedding(bench, arguments, result)
        reranking(bench, arguments, result, *first)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=list(READERS))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=0, help="only so many rows of each part")
    parser.add_argument("--embed", nargs="+", default=list(EMBED), choices=list(EMBED))
    parser.add_argument("--rerank", nargs="+", default=list(RERANK), choices=list(RERANK))
    parser.add_argument("--epochs", type=float, default=0, help="other than the settings say")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="settings that run side by side")
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class Bench:
    """What every run of a task shares."""

    task: Task
    model: Path
    folder: Path
    device: str
    threads: int

    @property
    def new_words(self) -> list[str]:
        """The characters of the texts to learn from that the model's tokenizer does not know."""
        tokenizer = Template.from_folder(self.model).tokenizer
        unknown = tokenizer.token_id(tokenizer.special_tokens["unk_token"])
        rows = self.task.learned
        texts = [side[n] for n in rows for side in (self.task.queries, self.task.passages)]
        return [c for c in characters(texts) if unknown in tokenizer.encode(c)]

    def train(self, name: str, model: Path, data: Path, kind: str, setting: Setting) -> Path:
        """Tune every parameter; the folder of the result."""
        output, is_pair = self.folder / name, kind == "rerank"
        words = self.new_words if setting.new_words and not is_pair else []
        job = {
            "model": str(model), "data": {"dataset": [str(data)]}, "output": str(output),
            "objective": {"kind": kind} | setting.objective,
            "tuner": {"kind": "full", "new_words": words},
            "max_length": PAIR_LENGTH if is_pair else LENGTH, "overlong": "truncate",
            "batch_size": 32, "accumulate": setting.accumulate, "epochs": setting.epochs,
            "optim": {"lr": setting.lr, "warmup": 0.1, "weight_decay": 0.01},
            "saving": {"save_steps": 10**6}, "device": self.device, "dtype": "fp32",
            "threads": self.threads, "workers": 1, "seed": 1,
        }  # fmt: skip
        run(jobfile.parse(TrainJob, job), events.ignore)
        return output


def fewer(task: Task, rows: int) -> Task:
    """The first rows of each part, numbered anew."""
    parts = [part[:rows] for part in (task.learned, task.chosen_on, task.held_out)]
    kept = np.concatenate(parts)
    numbers = np.split(np.arange(len(kept)), np.cumsum([len(part) for part in parts])[:-1])
    queries, passages = ([side[n] for n in kept] for side in (task.queries, task.passages))
    return Task(queries, passages, *map(np.asarray, numbers))


def facts(bench: Bench) -> dict[str, Any]:
    """Sizes, and how much of the texts the tokenizer reads."""
    task, tokenizer = bench.task, Template.from_folder(bench.model).tokenizer
    unknown = tokenizer.token_id(tokenizer.special_tokens["unk_token"])
    ids = [n for text in (*task.queries, *task.passages) for n in tokenizer.encode(text)]
    return {
        "learned": len(task.learned), "chosen on": len(task.chosen_on),
        "held out": len(task.held_out), "passages": len(task.passages),
        "unknown tokens": round(ids.count(unknown or 0) / len(ids), 4),
        "new characters": len(bench.new_words),
    }  # fmt: skip


def embedding(
    bench: Bench, arguments: argparse.Namespace, result: dict[str, Any]
) -> tuple[str, np.ndarray]:
    """Baselines, settings, and the chosen one on the held-out rows.

    Returns:
        what finds best on the settings part, BM25 or the chosen setting, and its (Q, P) scores.
    """
    task = bench.task
    asked, answers = ([side[n] for n in task.learned] for side in (task.queries, task.passages))
    own = [*zip(asked, answers, strict=True)]
    for name, pairs in (("pairs", own), ("halves", own + halves(asked) + halves(answers))):
        records = [{"query": first, "positive": second} for first, second in pairs]
        write(bench.folder / f"{name}.jsonl", records)
    data = bench.folder / "pairs.jsonl"
    fresh = bench.train("fresh", bench.model, data, "embed", Setting(1e-30, epochs=1e-9))
    found = {
        "BM25": bm25(task.queries, task.passages),
        "untuned": similarities(bench, bench.model),
        "untuned, fresh characters": similarities(bench, fresh),
    }
    wanted = {name: changed(EMBED[name], arguments.epochs) for name in arguments.embed}
    tuned = side_by_side(partial(tune_embedding, bench), wanted, arguments.processes)
    found |= {name: scores for name, (scores, _) in tuned.items()}
    result["embed seconds"] = {name: seconds for name, (_, seconds) in tuned.items()}
    result["embed, settings part"] = {
        name: quality(scores[task.chosen_on], task.chosen_on) for name, scores in found.items()
    }
    seen = {name: part["ndcg@10"] for name, part in result["embed, settings part"].items()}
    best = max(tuned, key=lambda name: seen[name])
    result["embed, chosen"] = best
    result["embed, held out"] = {
        name: quality(found[name][task.held_out], task.held_out)
        for name in (*list(found)[:3], best)
    }
    show(result)
    (bench.folder / "best").symlink_to(bench.folder / f"embed-{name_of(best)}")
    first = max(("BM25", best), key=lambda name: seen[name])
    return first, found[first]


def tune_embedding(bench: Bench, item: tuple[str, Setting]) -> tuple[np.ndarray, float]:
    """(Q, P) cosines by a model that learned, and the seconds that it took."""
    name, setting = item
    started = time.monotonic()
    data = bench.folder / ("halves.jsonl" if setting.halves else "pairs.jsonl")
    folder = bench.train(f"embed-{name_of(name)}", bench.model, data, "embed", setting)
    return similarities(bench, folder), round(time.monotonic() - started, 1)


def reranking(
    bench: Bench,
    arguments: argparse.Namespace,
    result: dict[str, Any],
    first: str,
    found_first: np.ndarray,
) -> None:
    """Settings of the reranker, and the chosen one on the held-out rows."""
    task = bench.task
    nearest = np.argsort(-found_first, axis=1)[:, :CANDIDATES]
    data = bench.folder / "lists.jsonl"
    write(data, mined(task, found_first))
    wanted = {name: changed(RERANK[name], arguments.epochs) for name in arguments.rerank}
    found = side_by_side(partial(tune_reranker, bench, data, nearest), wanted, arguments.processes)
    fresh = {"untrained": Setting(1e-30, epochs=1e-9)}
    found = side_by_side(partial(tune_reranker, bench, data, nearest), fresh, 1) | found
    result["rerank seconds"] = {name: seconds for name, (_, seconds) in found.items()}

    def measured(name: str, rows: np.ndarray, share: float) -> dict[str, float]:
        listed = np.take_along_axis(found_first, nearest, 1)
        scores = standard(found[name][0][rows]) + share * standard(listed[rows])
        return quality(scores, rows, nearest[rows])

    names, rows = list(found), task.chosen_on
    result["rerank, candidates of"] = first
    result["rerank, settings part"] = {"first order": quality(found_first[rows], rows)} | {
        f"{name} + {share:g} x first": measured(name, rows, share)
        for name in names
        for share in (SHARES if name != "untrained" else SHARES[:1])
    }
    best = max(names[1:], key=lambda name: measured(name, rows, 0.0)["ndcg@10"])
    share = max(SHARES, key=lambda share: measured(best, rows, share)["ndcg@10"])
    result["rerank, chosen"] = {"setting": best, "share of the first order": share}
    rows = task.held_out
    result["rerank, held out"] = {
        "first order": quality(found_first[rows], rows),
        "best possible": quality((nearest[rows] == rows[:, None]) * 1.0, rows, nearest[rows]),
        "untrained reranker": measured("untrained", rows, 0.0),
        "reranker": measured(best, rows, 0.0),
        f"reranker + {share:g} x first order": measured(best, rows, share),
    }
    show(result)


def mined(task: Task, scores: np.ndarray) -> list[dict[str, Any]]:
    """Two lists of a query's passage and seven others that are found early, of the learned part."""
    random = np.random.default_rng(0)
    by_words = bm25(task.queries, task.passages)
    lists: list[dict[str, Any]] = []
    for n in task.learned:
        near = [task.learned[np.argsort(-s[n, task.learned])][:MINED] for s in (scores, by_words)]
        others = np.setdiff1d(np.concatenate(near), [n])
        for _ in range(2):
            drawn = random.choice(others, min(7, len(others)), replace=False)
            lists.append({
                "query": task.queries[n], "positive": task.passages[n],
                "negative": [task.passages[m] for m in drawn],
            })  # fmt: skip
    return lists


def tune_reranker(
    bench: Bench, data: Path, nearest: np.ndarray, item: tuple[str, Setting]
) -> tuple[np.ndarray, float]:
    """(Q, CANDIDATES) scores of the rows that were not learned from, zero elsewhere; seconds."""
    name, setting = item
    started = time.monotonic()
    folder = bench.folder / "best"
    folder = bench.train(f"rerank-{name_of(name)}", folder.resolve(), data, "rerank", setting)
    template = Template.from_folder(folder)
    model = load_model(folder, device=find(bench.device), dtype="fp32", head="score")
    task = bench.task
    rows = np.concatenate([task.chosen_on, task.held_out])
    pairs = [
        shortened(template.framed_row(task.queries[q], task.passages[p]), PAIR_LENGTH)
        for q in rows
        for p in nearest[q]
    ]
    scores = np.zeros(nearest.shape, np.float32)
    scores[rows] = outputs(bench, model, pairs, View.scores).reshape(len(rows), -1)
    return scores, round(time.monotonic() - started, 1)


def similarities(bench: Bench, folder: Path) -> np.ndarray:
    """(Q, P) cosines of all queries with all passages."""
    pooling = pooling_of(folder)
    template = Template.from_folder(folder)
    model = load_model(folder, device=find(bench.device), dtype="fp32", head="none")

    def embed(texts: list[str]) -> np.ndarray:
        rows = [shortened(template.framed_row(text), LENGTH) for text in texts]
        return outputs(bench, model, rows, lambda v, b: F.normalize(v.pooled(b, pooling)))

    return embed(bench.task.queries) @ embed(bench.task.passages).T


@torch.no_grad()
def outputs(
    bench: Bench, model: Any, rows: list[Row], ask: Callable[[View, Batch], torch.Tensor]
) -> np.ndarray:
    """What a model says of each row, packed."""
    torch.set_num_threads(bench.threads)
    use_packed_attention(model)
    device = next(model.parameters()).device
    found: list[Any] = [None] * len(rows)
    for part in best_fit(np.asarray([len(row) for row in rows]), 8192):
        batch = collate([Unit((rows[n],)) for n in part], device, Step(1.0, 1))
        for number, vector in zip(part, ask(View(model), batch).cpu().numpy(), strict=True):
            found[number] = vector
    return np.stack(found)


def side_by_side(
    work: Callable[[tuple[str, Setting]], tuple[np.ndarray, float]],
    wanted: dict[str, Setting],
    processes: int,
) -> dict[str, tuple[np.ndarray, float]]:
    """The work for each setting, several at a time."""
    if processes == 1:
        return dict(zip(wanted, map(work, wanted.items()), strict=True))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        return dict(zip(wanted, pool.map(work, wanted.items()), strict=True))


def quality(
    scores: np.ndarray, rows: np.ndarray, listed: np.ndarray | None = None
) -> dict[str, float]:
    """How well queries find their own passage among all, or among those that are listed.

    Args:
        scores: (n, P) of the queries' passages.
        rows: (n,) numbers of the queries.
        listed: (n, P) numbers of the passages; of all in order when left out.
    """
    numbers = np.arange(scores.shape[1])[None] if listed is None else listed
    gains = (numbers == rows[:, None]).astype(float)
    each = [ndcg(scores[n : n + 1], gains[n : n + 1], PLACES) for n in range(len(rows))]
    return {
        "ndcg@10": round(float(np.mean(each)), 4),
        "+-": round(float(np.std(each) / len(rows) ** 0.5), 4),
        "mrr@10": round(mrr(scores, gains, PLACES), 4),
        "recall@10": round(recall(scores, gains, PLACES), 4),
    }


def standard(scores: np.ndarray) -> np.ndarray:
    """(n, P) each row with mean 0 and deviation 1."""
    return (scores - scores.mean(1, keepdims=True)) / (scores.std(1, keepdims=True) + 1e-9)


def changed(setting: Setting, epochs: float) -> Setting:
    """With other epochs, where they are given."""
    return replace(setting, epochs=epochs) if epochs else setting


def name_of(setting: str) -> str:
    """As a folder."""
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in setting)


def write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """JSON Lines."""
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text("\n".join(lines), encoding="utf-8")


def show(result: dict[str, Any]) -> None:
    """What is known so far."""
    print(json.dumps(result | {"at": time.strftime("%H:%M:%S")}, indent=2), flush=True)


if __name__ == "__main__":
    main()
