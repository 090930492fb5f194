"""GKD's divergence is the paper's formula and TRL's; logits are never whole; endpoints are checked.

Tolerance: 1e-5 in float32.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.tiny import make_tiny_checkpoint

from dialoop.chat.tokenizer import load_tokenizer
from dialoop.core.device import find
from dialoop.core.errors import UserError
from dialoop.data.units import Row, Unit
from dialoop.models.load import load_model
from dialoop.train.batch import Batch, Step, collate
from dialoop.train.endpoint import Endpoint
from dialoop.train.objectives.gkd import Gkd, by_chunks, divergence
from dialoop.train.teacher import check_endpoint, check_vocabulary
from dialoop.train.view import View, use_packed_attention


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Student and teacher, of different widths."""
    root = tmp_path_factory.mktemp("gkd")
    return (
        make_tiny_checkpoint(root / "student", hidden=32),
        make_tiny_checkpoint(root / "teacher", hidden=48, seed=1),
    )


def view(folders: tuple[Path, Path]) -> View:
    models = [load_model(folder, device=find("cpu"), dtype="fp32") for folder in folders]
    for model in models:
        use_packed_attention(model)
    teacher = View(models[1].requires_grad_(requires_grad=False))
    return View(models[0], companion=teacher)


def batch() -> Batch:
    chance, rows = np.random.default_rng(0), []
    for length in (12, 7, 20):
        ids = chance.integers(5, 300, length).astype(np.int32)
        rows.append(Row(ids, np.r_[np.zeros(3), np.ones(length - 3)].astype(np.float32)))
    return collate([Unit((row,)) for row in rows], torch.device("cpu"), Step(30.0, 3))


def logits(found: View, of: Batch) -> torch.Tensor:
    return found.token_logits(of)(slice(None))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_the_loss_is_the_formula(
    beta: float, temperature: float, folders: tuple[Path, Path]
) -> None:
    one, other, of = view(folders), view(folders), batch()
    objective = Gkd(teacher="teacher", beta=beta, temperature=temperature)
    loss = objective.loss(one, of).loss
    loss.backward()

    assert other.companion is not None
    p = (logits(other.companion, of) / temperature).softmax(-1).detach()
    q = (logits(other, of) / temperature).softmax(-1)
    if beta == 0:
        rows = (p * (p / q).log()).sum(-1)
    elif beta == 1:
        rows = (q * (q / p).log()).sum(-1)
    else:
        m = beta * p + (1 - beta) * q
        rows = beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)
    expected = rows.sum() / 30
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_is_trl_s(beta: float) -> None:
    trainer = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(11, 50), 3 * torch.randn(11, 50)
    expected = trainer.GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], labels=torch.ones(1, 11, dtype=torch.long), beta=beta,
    )  # fmt: skip
    found = divergence(student.log_softmax(-1), teacher.log_softmax(-1), beta).mean()
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_chunks_change_neither_values_nor_gradients() -> None:
    torch.manual_seed(0)
    states, head = torch.randn(20, 8), torch.randn(30, 8)
    found = []
    for chunk in (7, 100):
        weight = head.clone().requires_grad_()

        def one(part: slice, weight: torch.Tensor = weight) -> torch.Tensor:
            return (states[part] @ weight.T).logsumexp(-1)

        rows = by_chunks(one, 20, chunk=chunk)
        (rows * torch.arange(20)).sum().backward()
        found.append((rows.detach(), weight.grad))
    torch.testing.assert_close(found[0], found[1])


class Teacher(BaseHTTPRequestHandler):
    """Serves a tiny model's log-probabilities as vLLM spells them."""

    model: Any = None
    words: Any = None

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice: dict[str, Any] = {"text": "x"}
        if self.model is not None:
            ids = torch.tensor([wanted["prompt"]])
            with torch.no_grad():
                logps = self.model(ids).logits[0].log_softmax(-1)
            best = logps.topk(wanted["prompt_logprobs"])
            places = [
                {str(i): {"logprob": v, "decoded_token": self.words(i)}
                 for v, i in zip(values.tolist(), found.tolist(), strict=True)}
                for values, found in zip(*best, strict=True)
            ]  # fmt: skip
            choice["prompt_logprobs"] = [None, *places[:-1]]
        body = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass


@pytest.fixture
def endpoint() -> Iterator[tuple[Endpoint, type[Teacher]]]:
    kind = type("Served", (Teacher,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Endpoint(url=f"http://127.0.0.1:{server.server_port}/v1", model="teacher"), kind
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_s_likeliest_tokens_teach(
    folders: tuple[Path, Path], endpoint: tuple[Endpoint, type[Teacher]]
) -> None:
    where, kind = endpoint
    kind.model = load_model(folders[1], device=find("cpu"), dtype="fp32")
    kind.words = staticmethod(lambda i: load_tokenizer(folders[1]).decode([i], skip_special=False))
    of, student = batch(), view(folders)
    assert student.companion is not None
    check_endpoint(where, load_tokenizer(folders[0]))
    loss = Gkd(endpoint=where, top_k=5, beta=0.0).loss(student, of).loss
    p = logits(student.companion, of).softmax(-1)
    q = logits(student, of).softmax(-1)
    best, ids = p.topk(5)
    own = q.gather(-1, ids)
    rest, own_rest = 1 - best.sum(-1), 1 - own.sum(-1)
    rows = (best * (best / own).log()).sum(-1) + rest * (rest / own_rest).log()
    loss, rows = float(loss.detach()), rows.detach()
    assert loss == pytest.approx(float(rows.sum() / 30), abs=1e-4)
    assert loss < float((p * (p / q).log()).sum().detach() / 30)


def test_an_endpoint_without_log_probabilities_is_refused(
    folders: tuple[Path, Path], endpoint: tuple[Endpoint, type[Teacher]]
) -> None:
    with pytest.raises(UserError, match="tells no log-probabilities of a prompt's tokens by id"):
        check_endpoint(endpoint[0], load_tokenizer(folders[0]))


def test_an_endpoint_with_another_vocabulary_is_refused(
    folders: tuple[Path, Path], endpoint: tuple[Endpoint, type[Teacher]]
) -> None:
    where, kind = endpoint
    kind.model = load_model(folders[1], device=find("cpu"), dtype="fp32")

    def told(i: int) -> str:
        return "?" + str(i)

    kind.words = staticmethod(told)
    tokenizer = load_tokenizer(folders[0])
    body = kind.model

    class Certain(torch.nn.Module):
        """Gives the next token of the probe all probability, so that it is told."""

        def forward(self, ids: torch.Tensor) -> Any:
            out = body(ids)
            out.logits[0, torch.arange(ids.shape[1] - 1), ids[0, 1:]] = 1e3
            return out

    kind.model = Certain()
    with pytest.raises(UserError, match="has another vocabulary: token"):
        check_endpoint(where, tokenizer)


def test_a_teacher_with_another_vocabulary_is_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    other = make_tiny_checkpoint(tmp_path / "other", hidden=32)
    path = other / "tokenizer.json"
    raw = json.loads(path.read_text())
    vocab = raw["model"]["vocab"]
    a, b = list(vocab)[300], list(vocab)[301]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    path.write_text(json.dumps(raw))
    same = load_tokenizer(folders[0])
    check_vocabulary(same, load_tokenizer(folders[1]), "teacher")
    with pytest.raises(UserError, match="`teacher` has another vocabulary: token 30"):
        check_vocabulary(same, load_tokenizer(other), "teacher")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs one teacher"),
        ({"endpoint": {"url": "http://x/v1", "model": "m"}, "seq_kd": True}, "seq_kd needs a"),
        ({"endpoint": {"url": "http://x/v1", "model": "m"}, "temperature": 2}, "at temperature 1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Gkd.model_validate(settings)
