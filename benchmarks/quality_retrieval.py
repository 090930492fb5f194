"""What embedding and reranker training give on real questions and answers: nDCG@10 and MRR@10.

Questions (titles) of Chinese medical advice must find their own answer among all answers. One part
of the rows is held out of training. The embedding model is measured before and after `embed`; the
reranker orders the 20 answers that the untuned model puts first, the right one among them.

Run: python benchmarks/quality_retrieval.py --model MINILM_FOLDER --data CSV
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

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
    from collections.abc import Callable

    from dialoop.chat.template import Row
    from dialoop.train.batch import Batch

CANDIDATES = 20
PLACES = 10
LENGTH = 96


def main() -> None:
    """Print one JSON document."""
    arguments = parse()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    questions, answers = read(arguments.data)
    order = np.random.default_rng(0).permutation(len(questions))
    held_out, learned = order[: arguments.held_out], order[arguments.held_out :]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = similarities(arguments.model, questions, answers)
        result = {"embedding before": search(base[held_out], held_out)}
        data = folder / "pairs.jsonl"
        write(data, [{"query": questions[n], "positive": answers[n]} for n in learned])
        settings = {"epochs": arguments.epochs, "batch_size": 16, "optim": {"lr": arguments.lr}}
        result["embed"] = train(
            folder / "embed", arguments.model, data, {"kind": "embed"}, arguments.threads, settings
        )
        tuned = similarities(folder / "embed", questions, answers)
        result["embedding after"] = search(tuned[held_out], held_out)
        show(result)

        nearest = candidates(base)
        result["candidates by embedding before"] = rank(base, nearest, held_out)
        result["candidates by embedding after"] = rank(tuned, nearest, held_out)
        data, may_be_shown = folder / "lists.jsonl", set(learned.tolist())
        mined = [
            {
                "query": questions[n],
                "positive": answers[n],
                "negative": [answers[m] for m in nearest[n] if m != n and m in may_be_shown][:4],
            }
            for n in learned
        ]
        write(data, mined)
        settings = {"epochs": 1, "batch_size": 16, "optim": {"lr": arguments.rerank_lr}}
        job = {"kind": "rerank", "num_negatives": 4}
        start = folder / "embed"
        result["rerank"] = train(folder / "rerank", start, data, job, arguments.threads, settings)
        judged = pair_scores(folder / "rerank", questions, answers, nearest, held_out)
        result["candidates by reranker after"] = rank(judged, nearest, held_out)
    show(result)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--rerank-lr", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def read(path: Path) -> tuple[list[str], list[str]]:
    """Questions and answers, each question and each answer once."""
    with path.open(encoding="gb18030", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = {row["answer"]: row["title"] for row in rows}
    pairs = {question: answer for answer, question in pairs.items()}
    return list(pairs), list(pairs.values())


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """JSON Lines."""
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text("\n".join(lines), encoding="utf-8")


def train(
    output: Path, model: Path, data: Path, objective: dict[str, Any], threads: int,
    settings: dict[str, Any],
) -> dict[str, float]:  # fmt: skip
    """Tune every parameter; loss and time."""
    job = {
        "model": str(model), "data": {"dataset": [str(data)]}, "output": str(output),
        "objective": objective, "tuner": {"kind": "full"}, "max_length": LENGTH,
        "overlong": "truncate", "accumulate": 4, "device": "cpu", "dtype": "fp32",
        "threads": threads, "seed": 1,
    }  # fmt: skip
    result = run(jobfile.parse(TrainJob, job | settings), events.ignore)
    return {"steps": result.steps, "loss": result.train_loss, "seconds": result.seconds}


def similarities(folder: Path, questions: list[str], answers: list[str]) -> np.ndarray:
    """(Q, P) cosines of all questions with all answers."""
    pooling = pooling_of(folder)
    template = Template.from_folder(folder)
    model = load_model(folder, device=find("cpu"), dtype="fp32", head="none")

    def embed(texts: list[str]) -> np.ndarray:
        rows = [shortened(template.framed_row(text), LENGTH) for text in texts]
        return outputs(model, rows, lambda v, b: F.normalize(v.pooled(b, pooling)))

    return embed(questions) @ embed(answers).T


def pair_scores(
    folder: Path, questions: list[str], answers: list[str], nearest: np.ndarray,
    wanted: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """(Q, P) scores of the wanted questions with their candidates; zero elsewhere."""
    template = Template.from_folder(folder)
    model = load_model(folder, device=find("cpu"), dtype="fp32", head="score")
    places = [(q, p) for q in wanted for p in nearest[q]]
    rows = [shortened(template.framed_row(questions[q], answers[p]), LENGTH) for q, p in places]
    found = outputs(model, rows, View.scores)[:, 0]
    scores = np.zeros((len(questions), len(answers)), np.float32)
    scores[tuple(np.asarray(places).T)] = found
    return scores


@torch.no_grad()
def outputs(model: Any, rows: list[Row], ask: Callable[[View, Batch], torch.Tensor]) -> np.ndarray:
    """What a model says of each row, packed."""
    use_packed_attention(model)
    found: list[Any] = [None] * len(rows)
    for part in best_fit(np.asarray([len(row) for row in rows]), 4096):
        batch = collate([Unit((rows[n],)) for n in part], torch.device("cpu"), Step(1.0, 1))
        for number, vector in zip(part, ask(View(model), batch).numpy(), strict=True):
            found[number] = vector
    return np.stack(found)


def candidates(scores: np.ndarray) -> np.ndarray:
    """(Q, CANDIDATES) the first answers of each question, its own one put last if it is absent."""
    first = np.argsort(-scores, axis=1)[:, :CANDIDATES]
    own = np.arange(len(scores))
    is_absent = (first != own[:, None]).all(1)
    first[is_absent, -1] = own[is_absent]
    return first


def search(scores: np.ndarray, own: np.ndarray) -> dict[str, float]:
    """Quality of finding each question's own answer among all."""
    gains = np.zeros_like(scores)
    gains[np.arange(len(own)), own] = 1
    return quality(scores, gains)


def rank(scores: np.ndarray, nearest: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Quality of ordering the candidates."""
    listed = nearest[wanted]
    gains = (listed == wanted[:, None]).astype(float)
    return quality(np.take_along_axis(scores[wanted], listed, 1), gains)


def quality(scores: np.ndarray, gains: np.ndarray) -> dict[str, float]:
    """The three figures."""
    named = {"ndcg@10": ndcg, "mrr@10": mrr, "recall@10": recall}
    return {name: round(measure(scores, gains, PLACES), 4) for name, measure in named.items()}


def show(result: dict[str, Any]) -> None:
    """What is known so far."""
    print(json.dumps(result | {"at": time.strftime("%H:%M:%S")}, indent=2), flush=True)


if __name__ == "__main__":
    main()
