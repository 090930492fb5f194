"""Models behind an address: answers, calls, letters, vectors, times, judges."""

import time
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.http_fake import Json, said, serving
from tests.tiny import make_tiny_checkpoint

from dialoop.core.errors import UpstreamError, UserError
from dialoop.core.events import ignore
from dialoop.core.jobfile import parse
from dialoop.evaluate.endpoint import RemoteSubject
from dialoop.evaluate.result import Case, Measured
from dialoop.evaluate.run import run
from dialoop.evaluate.spec import EvaluateJob, Generation
from dialoop.evaluate.stream import timed
from dialoop.evaluate.tasks import Material
from dialoop.evaluate.tasks.judge import Judge, kappa
from dialoop.evaluate.tasks.latency import Latency
from dialoop.train.endpoint import Endpoint

CALLS = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"n": 1}'}}]


def subject(url: str) -> RemoteSubject:
    return RemoteSubject(Endpoint(url=url, model="m", timeout_s=5), Generation(), ignore)


def test_a_suite_at_an_endpoint(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text("- {id: a, question: red, must_contain: [red]}\n")
    seen: list[Json] = []

    def answer(path: str, body: Json) -> Json:
        seen.append({"path": path} | body)
        return said(body["messages"][-1]["content"])

    with serving(answer) as url:
        asked = {"model": "m", "endpoint": url, "suite": [str(tmp_path / "suite.yaml")]}
        result = run(parse(EvaluateJob, asked), ignore)
        with pytest.raises(UserError, match="which no endpoint tells"):
            run(
                parse(EvaluateJob, asked | {"tasks": ["loss"], "dataset": [held_out(tmp_path)]}),
                ignore,
            )
    assert result.checks_passed == 1
    assert seen[0] == {
        "path": "/v1/chat/completions",
        "model": "m",
        "messages": [{"role": "user", "content": "red"}],
        "max_tokens": 128,
        "temperature": 0.0,
    }


def held_out(folder: Path) -> str:
    path = folder / "held.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    return str(path)


def test_calls_come_as_fields_or_as_text() -> None:
    from dialoop.chat.message import Tool, message
    from dialoop.evaluate.tasks import Prompt

    written = '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>'
    prompt = Prompt((message("user", "x"),), (Tool("f"),))
    for reply in (said("", tool_calls=CALLS), said(written)):
        with serving(lambda _, __, reply=reply: reply) as url:
            (found,) = subject(url).replies([prompt])
        assert [(c.name, c.arguments) for c in found.calls] == [("f", {"n": 1})]
    with (
        serving(lambda _, __: {"object": "x"}) as url,
        pytest.raises(UpstreamError, match="no chat completion"),
    ):
        subject(url).replies([prompt])


def test_letters_by_log_probability() -> None:
    from dialoop.chat.message import message

    tops = [{"token": "B", "logprob": -1.0}, {"token": " B", "logprob": -1.0}]
    reply = said("B")
    reply["choices"][0]["logprobs"] = {"content": [{"top_logprobs": tops}]}
    with serving(lambda _, __: reply) as url:
        found = subject(url).choices([[message("user", "x")]], ["AB"])
    assert found == [[float("-inf"), pytest.approx(-1 + 0.6931472)]]
    with (
        serving(lambda _, __: said("B")) as url,
        pytest.raises(UserError, match="tells no log-prob"),
    ):
        subject(url).choices([[message("user", "x")]], ["AB"])


def test_vectors_have_length_1_and_keep_their_order() -> None:
    def answer(path: str, body: Json) -> Json:
        assert path == "/v1/embeddings"
        data = [{"index": n, "embedding": [len(t), 0.0]} for n, t in enumerate(body["input"])]
        return {"data": data[::-1]}

    with serving(answer) as url:
        found = subject(url).vectors(["a", "bb"] * 20, "q: ")
    assert found.shape == (40, 2)
    assert found[:, 0] == pytest.approx(1)


def test_times_are_those_of_the_server() -> None:
    with serving(lambda _, __: ["a", "b", "c", "d"], wait_s=0.02) as url:
        began = time.monotonic()
        measured = Latency(clients=2, requests=6, warmup=1).measure(
            subject(url), Material(None, ())
        )
        took = time.monotonic() - began
    values = {s.name: s.value for s in measured.scores}
    # 20 ms before each of four pieces; loopback and scheduling add at most 30 ms to each
    assert 20 <= values["first token, mean"] < 50
    assert 20 <= values["between tokens, mean"] < 50
    assert 80 <= values["whole answer, p50"] < 200
    assert values["requests"] == 6
    assert values["requests left out"] == 0
    assert 6 / took <= values["requests a second"] <= 2 / 0.08
    assert values["tokens a second"] == pytest.approx(4 * values["requests a second"])


def test_late_requests_are_left_out_and_counted() -> None:
    with serving(lambda _, __: ["a"], wait_s=0.05) as url:
        task = Latency(clients=1, requests=5, warmup=0, max_s=0.12)
        measured = task.measure(subject(url), Material(None, ()))
    values = {s.name: s.value for s in measured.scores}
    assert 1 <= values["requests"] <= 3
    assert values["requests"] + values["requests left out"] == 5


def test_a_checkpoint_has_no_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    make_tiny_checkpoint(tmp_path / "m")
    asked = {"model": str(tmp_path / "m"), "tasks": ["latency"], "device": "cpu"}
    with pytest.raises(UserError, match="task `latency` measures an endpoint"):
        run(parse(EvaluateJob, asked), ignore)


def test_refusals_are_errors() -> None:
    with serving(lambda _, __: 400) as url, pytest.raises(UserError, match=r"refuses \(400\)"):
        timed(Endpoint(url=url, model="m"), {})
    with serving(lambda _, __: 503) as url, pytest.raises(UpstreamError, match=r"refuses \(503\)"):
        timed(Endpoint(url=url, model="m"), {})
    with pytest.raises(UpstreamError, match="does not answer"):
        timed(Endpoint(url=url, model="m", timeout_s=2), {})


def measured(answers: list[str]) -> Measured:
    cases = tuple(Case(id=str(n), question="q", answer=text) for n, text in enumerate(answers))
    return Measured(task="judge", cases=cases)


def judged(vote: Any, model: list[str], other: list[str]) -> Measured:
    def answer(_: str, body: Json) -> Json:
        told = body["messages"][0]["content"]
        a, b = told.split("[Assistant A]\n")[1].split("\n\n[Assistant B]\n")
        return said(vote(a, b))

    with serving(answer) as url:
        task = Judge(endpoint=Endpoint(url=url, model="judge"))
        return task.confront(measured(model), measured(other))


def test_pairs_are_judged_in_both_orders() -> None:
    def longest(a: str, b: str) -> str:
        return (
            "[[C]]" if len(a) == len(b) else "So [[B]]? No: [[A]]" if len(a) > len(b) else "[[B]]"
        )

    found = judged(longest, ["aaa", "b", "cc", "dddd"], ["a", "bb", "cc", "d"])
    values = {s.name: s.value for s in found.scores}
    assert (values["wins"], values["losses"], values["ties"]) == (2, 1, 1)
    assert values["win rate"] == pytest.approx((2 + 0.5) / 4)
    assert values["both orders agree"] == 1
    assert values["kappa of the two orders"] == 1
    assert values["votes for the first place"] == 0.5
    assert values["p of wins against losses"] == 1
    assert [c.passed for c in found.cases] == [True, False, None, True]


def test_a_judge_that_prefers_a_place_gives_ties_and_is_found_out() -> None:
    found = judged(lambda *_: "[[A]]", ["x"] * 4, ["y"] * 4)
    values = {s.name: s.value for s in found.scores}
    assert (values["ties"], values["win rate"], values["both orders agree"]) == (4, 0.5, 0)
    assert values["votes for the first place"] == 1
    assert "turned with the order" in found.cases[0].problems[0]


def test_a_judge_without_a_verdict_is_counted() -> None:
    values = {s.name: s.value for s in judged(lambda *_: "hm", ["x"], ["y"]).scores}
    assert values == {"wins": 0, "ties": 0, "losses": 0, "no verdict": 1}


def test_nothing_beside_the_answers_is_an_error() -> None:
    task = Judge(endpoint=Endpoint(url="http://127.0.0.1:1/v1", model="judge"))
    with pytest.raises(UserError, match="there is nothing to judge the answers beside"):
        task.confront(measured(["x"]), None)


def test_questions_of_several_turns(shared_data: Path) -> None:
    from tests.evaluate.fakes import Puppet

    path = shared_data / "eval" / "mt_bench" / "question.jsonl"
    puppet = Puppet()
    task = Judge(
        endpoint=Endpoint(url="http://127.0.0.1:1/v1", model="j"), files=[str(path)], count=3
    )
    found = task.measure(puppet, Material(None, ()))
    assert len(found.cases) == 3
    assert [len(p.messages) for p in puppet.asked] == [1, 1, 1, 3, 3, 3]
    first = found.cases[0]
    assert first.answer == first.question.replace("\n", "\n\n"), "both turns, echoed"


@pytest.mark.parametrize(
    ("one", "two"), [("AABBC", "AABCC"), ("ABAB", "BABA"), ("AAAB", "AABB"), ("ABCABC", "ABCABC")]
)
def test_kappa_is_that_of_scikit_learn(one: str, two: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    expected = metrics.cohen_kappa_score(list(one), list(two))
    assert kappa(list(one), list(two)) == pytest.approx(expected, abs=1e-12)
    assert kappa(["A"], ["A"]) is None
