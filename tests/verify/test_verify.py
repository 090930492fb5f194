"""Forms of one tiny model that agree, and every way in which they may not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluate.http_fake import Json, said, serving
from tests.tiny import make_tiny_checkpoint

from dialoop.chat.message import from_openai, tool_from_openai
from dialoop.chat.template import Template
from dialoop.core.errors import UserError
from dialoop.core.events import Event, Note, ignore
from dialoop.core.jobfile import parse
from dialoop.quantize.run import run as quantize
from dialoop.quantize.spec import QuantizeJob
from dialoop.train.endpoint import Endpoint
from dialoop.verify.folder import Answered
from dialoop.verify.material import OWN
from dialoop.verify.run import run
from dialoop.verify.served import Served
from dialoop.verify.spec import VerifyJob


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("verify")
    for name, seed in (("one", 1), ("other", 2)):
        config = make_tiny_checkpoint(place / name, "internlm3", seed=seed) / "config.json"
        facts = json.loads(config.read_text()) | {"max_position_embeddings": 1024}
        config.write_text(json.dumps(facts))
    shutil.copytree(place / "one", place / "same")
    return place


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


def job(*models: Path, **fields: Any) -> VerifyJob:
    given = {"device": "cpu", "dtype": "fp32", "max_new_tokens": 8}
    return parse(VerifyJob, {"models": [str(m) for m in models]} | given | fields)


def test_equal_folders_agree(folder: Path, tmp_path: Path) -> None:
    result = run(job(folder / "one", folder / "same", output=tmp_path / "out"), ignore)
    (form,) = result.forms
    assert (form.worst_nats, form.num_same, result.agrees) == (0, 7, True)
    assert (result.reference_kind, form.kind) == ("whole", "whole")
    names = [sent.dialogue for sent in result.sent]
    assert names == ["question", "system", "turns", "Chinese", "spaces", "tools", "tool result"]
    template = Template.from_folder(folder / "one")
    assert result.sent[0].prompt == template.tokenizer.decode(
        list(result.sent[0].prompt_ids), skip_special=False
    )
    assert "get_weather" in result.sent[5].prompt
    assert json.loads((tmp_path / "out" / "verify.json").read_text())["agrees"] is True
    page = (tmp_path / "out" / "verify.md").read_text()
    assert "Ids sent: " + " ".join(map(str, result.sent[0].prompt_ids)) in page


def test_an_adapter_agrees_with_its_merged_form_and_not_with_its_base(
    folder: Path, tmp_path: Path
) -> None:
    from tests.models.conftest import peft_adapter

    from dialoop.models.merge import run as merge
    from dialoop.models.spec import MergeJob

    adapter = peft_adapter(folder / "one", tmp_path / "adapter")
    merge(MergeJob(model=str(adapter), output=tmp_path / "merged"), ignore)
    result = run(job(adapter, tmp_path / "merged"), ignore)
    assert (result.reference_kind, result.forms[0].kind) == ("adapter", "whole")
    assert result.forms[0].num_same == 7
    worst = [d.max_nats for d in result.forms[0].dialogues if d.max_nats is not None]
    assert 0 < max(worst) <= 1e-4  # float32, the bar for merged against unmerged
    with pytest.raises(UserError, match="nats at a first token"):
        run(job(adapter, folder / "one"), ignore)


def test_other_weights_are_an_error_and_still_reported(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"differs from .* nats at a first token, and 0\.25 are"):
        run(job(folder / "one", folder / "other", output=tmp_path / "out"), ignore)
    found = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert found["agrees"] is False
    assert "answers part at token" in (tmp_path / "out" / "verify.md").read_text()


def drifted(folder: Path, tmp_path: Path, change: Callable[[Path], None]) -> Path:
    copy = tmp_path / "drifted"
    shutil.copytree(folder / "one", copy)
    change(copy)
    return copy


def test_template_drift_names_the_first_differing_token(folder: Path, tmp_path: Path) -> None:
    def change(copy: Path) -> None:
        path = copy / "chat_template.jinja"
        path.write_text(path.read_text().replace("'\\n'", "' '"))

    expected = r"dialogue `question`: .* token \d+ is '\\n' \(\d+\) in .*one` and ' ?' \(\d+\) in"
    with pytest.raises(UserError, match=expected):
        run(job(folder / "one", drifted(folder, tmp_path, change)), ignore)


def test_tokenizer_drift_is_found(folder: Path, tmp_path: Path) -> None:
    def change(copy: Path) -> None:
        path = copy / "tokenizer.json"
        data = json.loads(path.read_text())
        data["model"]["merges"] = data["model"]["merges"][:5]
        path.write_text(json.dumps(data))

    with pytest.raises(UserError, match="the forms send different ids: token"):
        run(job(folder / "one", drifted(folder, tmp_path, change)), ignore)


class Server:
    """Serves a folder greedily, with ways to be wrong."""

    def __init__(self, folder: Path, **ways: Any) -> None:
        from dialoop.verify.folder import Folder

        self.folder = Folder.open("s", folder, job(folder, folder))
        self.ways = ways

    def ids(self, body: Json) -> list[int]:
        messages = [from_openai(m) for m in body["messages"]]
        if self.ways.get("adds"):
            messages = [from_openai({"role": "system", "content": "x"}), *messages]
        tools = [tool_from_openai(t) for t in body.get("tools", ())]
        ids = self.folder.template.prompt_ids(messages, tools)
        swaps = self.ways.get("swaps") or (tools and self.ways.get("swaps_tools"))
        return [*ids[:4], *ids[4:][::-1]] if swaps else ids

    def __call__(self, path: str, body: Json) -> Any:
        if path == "/tokenize":
            return {"tokens": self.ids(body)} if self.ways.get("tokenizes") else 404
        if path == "/v1/completions":
            ids = body["prompt"]
            return {"choices": [{"text": self.folder._text(self.folder._greedy(ids))}]}
        if body.get("tools") and self.ways.get("no_tools"):
            return 400
        if self.ways.get("chosen_only") and "top_logprobs" in body:
            return 400, "top_logprobs are not told"
        ids = self.ids(body)
        answer = self.folder._greedy(ids)
        reply = said(self.folder._text(answer))
        reply["usage"]["prompt_tokens"] = len(ids)
        logp = float(self.folder._logps(ids, answer)[0, answer[0]]) + self.ways.get("shift", 0)
        token = self.folder.template.tokenizer.decode([answer[0]], skip_special=False)
        told = {"content": [{"token": token, "logprob": logp}]}
        reply["choices"][0]["logprobs"] = None if self.ways.get("silent") else told
        return reply


def served(folder: Path, emit: Callable[[Event], None] = ignore, **ways: Any) -> Any:
    with serving(Server(folder / "one", **ways)) as url:
        return run(job(folder / "one", served={"m": url}), emit)


def test_a_served_form_agrees(folder: Path) -> None:
    (form,) = served(folder).forms
    assert form.worst_nats == pytest.approx(0, abs=1e-5)
    assert form.num_same == 7


def test_served_drift_names_the_token_where_the_server_tells_it(folder: Path) -> None:
    with pytest.raises(UserError, match=r"token 1 is '?.* in `.*one` and .* in `m at http"):
        served(folder, adds=True, tokenizes=True)
    with pytest.raises(UserError, match=r"makes \d+ tokens of it and .* \d+; the server does not"):
        served(folder, adds=True)


def test_as_many_other_ids_are_found_by_asking_with_the_ids(folder: Path) -> None:
    with pytest.raises(UserError, match="it sends as many ids, but others"):
        served(folder, swaps=True)


@pytest.mark.parametrize("tokenizes", [True, False])
def test_drift_of_dialogues_with_tools_is_found(folder: Path, *, tokenizes: bool) -> None:
    expected = "token 4 is" if tokenizes else "it sends as many ids, but others"
    with pytest.raises(UserError, match=f"dialogue `tools`: .*{expected}"):
        served(folder, swaps_tools=True, tokenizes=tokenizes)


def test_a_call_that_the_server_takes_out_of_the_text_is_the_same_answer(folder: Path) -> None:
    template = Template.from_folder(folder / "one")
    written = (
        'Yes.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    )
    ids = template.tokenizer.encode(written)
    dialogue = next(d for d in OWN if d.name == "tools")
    prompt = template.prompt_ids(dialogue.messages, dialogue.tools)
    logps = np.zeros((len(ids), template.tokenizer.vocab_size))
    first = Answered(dialogue, prompt, ids, logps, written)
    function = {"name": "get_weather", "arguments": '{"city":"Oslo"}'}
    message = {"content": "Yes.", "tool_calls": [{"id": "1", "function": function}]}

    def answer(path: str, body: Json) -> Any:
        del body
        if path == "/tokenize":
            return {"tokens": prompt}
        usage = {"prompt_tokens": len(prompt)}
        return {"choices": [{"message": message}], "usage": usage}

    with serving(answer) as url:
        form = Served(Endpoint(url=url, model="m"), template, 24)
        assert form.compare(first, "one").is_same
        message["tool_calls"] = [{"id": "1", "function": function | {"name": "get_time"}}]
        assert "get_time" in form.compare(first, "one").answer
        assert not form.compare(first, "one").is_same


def test_served_log_probabilities_are_bounded(folder: Path) -> None:
    with pytest.raises(UserError, match=r"by 0\.300 nats at a first token"):
        served(folder, shift=0.3)


def test_what_a_server_does_not_do_is_said(folder: Path) -> None:
    events: list[Event] = []
    (form,) = served(folder, events.append, no_tools=True, silent=True).forms
    assert [bool(d.refused) for d in form.dialogues] == [False] * 5 + [True] * 2
    notes = [event.text for event in events if isinstance(event, Note)]
    assert sum("not asked: " in note for note in notes) == 2
    assert any("tells no log-probabilities" in note for note in notes)


def test_a_server_that_tells_the_chosen_token_alone_is_compared_by_it(folder: Path) -> None:
    (form,) = served(folder, chosen_only=True).forms
    assert form.worst_nats == pytest.approx(0, abs=1e-5)


def test_dialogues_of_ones_own(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    result = run(job(folder / "one", folder / "same", dialogues=[str(path)]), ignore)
    assert "hello" in result.sent[-1].prompt
    path.write_text('{"messages": [{"role": "assistant", "content": "hello"}]}\n')
    with pytest.raises(UserError, match="no `messages` that wait for an answer"):
        run(job(folder / "one", folder / "same", dialogues=[str(path)]), ignore)


def test_one_form_alone_is_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match="one form has nothing to be held against"):
        run(job(folder / "one"), ignore)


@pytest.fixture(scope="module")
def rounded(folder: Path) -> Path:
    """The first form with its weights in 8 bits."""
    pytest.importorskip("compressed_tensors")
    out = folder / "rounded"
    asked = {"model": str(folder / "one"), "method": "int8_weight", "output": str(out)}
    method = {"kind": "int8_weight", "group_size": 32}
    quantize(parse(QuantizeJob, asked | {"method": method, "device": "cpu"}), ignore)
    return out


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_form_is_bounded_by_its_mean(folder: Path, rounded: Path) -> None:
    result = run(job(folder / "one", rounded, max_nats_quantized=0.1), ignore)
    (form,) = result.forms
    assert form.is_quantized
    told = [d.mean_nats for d in form.dialogues if d.mean_nats is not None]
    assert form.nats == pytest.approx(sum(told) / 7)
    assert form.nats != form.worst_nats
    with pytest.raises(UserError, match=r"nats a token on average, and 0\.0001 are allowed") as bad:
        run(job(folder / "one", rounded, max_nats_quantized=1e-4), ignore)
    assert "--max_nats_quantized" in str(bad.value.hint)


@pytest.mark.filterwarnings("ignore")
def test_other_weights_in_8_bits_are_an_error(folder: Path, rounded: Path) -> None:
    with pytest.raises(UserError, match=r"nats a token on average, and 0\.5 are"):
        run(job(folder / "other", rounded), ignore)
