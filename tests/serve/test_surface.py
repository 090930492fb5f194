"""What OpenAI's client may ask of a live server, on each embedded engine."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.engines.contract import make_adapter
from tests.serve.test_server import LiveServer

from dialoop.serve.spec import ServeJob

HELLO: Any = [{"role": "user", "content": "Hi"}]
LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"k": {"enum": ["a", "b"]}},
            "required": ["k"],
            "additionalProperties": False,
        },
    },
}
FORM: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "order",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"paid": {"type": "boolean"}, "kind": {"enum": ["lamp", "灯"]}},
            "required": ["paid", "kind"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def folders(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters on the checkpoint."""
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(folder / f"{seed}", checkpoint, seed=seed) for seed in (3, 4)]


@pytest.fixture(scope="module", params=["transformers", "openvino"])
def client(
    request: pytest.FixtureRequest, checkpoint: Path, folders: list[Path]
) -> Iterator[openai.OpenAI]:
    """A client of a server with one adapter."""
    if request.param == "openvino":
        pytest.importorskip("openvino_genai")
    job = ServeJob(
        model=str(checkpoint),
        port=0,
        engine=request.param,
        device="cpu",
        dtype="fp32",
        threads=1,
        adapters={"warm": str(folders[0])},
        may_load_adapters=True,
    )
    with LiveServer(job) as live, openai.OpenAI(base_url=live.server.url, api_key="x") as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    settings: dict[str, Any] = {"model": "tiny-model", "messages": HELLO, "max_tokens": 60}
    create: Any = client.chat.completions.create
    return create(**(settings | {"temperature": 0} | fields))


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": LOOK["function"]}])
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_forced_call_has_arguments_of_its_schema(
    client: openai.OpenAI, choice: Any, is_stream: bool
) -> None:
    pytest.importorskip("xgrammar")
    found = ask(client, tools=[LOOK], tool_choice=choice, stream=is_stream, max_tokens=50)
    if is_stream:
        choices = [chunk.choices[0] for chunk in found]
        (call,) = [call for one in choices for call in one.delta.tool_calls or ()]
        assert "".join(one.delta.content or "" for one in choices) == ""
    else:
        choices = found.choices
        (call,) = choices[0].message.tool_calls
        assert choices[0].message.content is None
    assert choices[-1].finish_reason == "tool_calls"
    assert call.function.name == "look"
    assert json.loads(call.function.arguments)["k"] in {"a", "b"}
    turns = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call.id, "type": "function", "function": dict(call.function)}],
        },
        {"role": "tool", "tool_call_id": call.id, "content": "It is on its way."},
    ]
    assert ask(client, messages=turns, max_tokens=4).usage.completion_tokens == 4


def test_other_choices_leave_the_answer_free(client: openai.OpenAI) -> None:
    plain = ask(client, max_tokens=8).choices[0].message.content
    none = ask(client, max_tokens=8, tools=[LOOK], tool_choice="none").choices[0].message
    assert (none.content, none.tool_calls) == (plain, None)
    auto = ask(client, max_tokens=8, tools=[LOOK]).choices[0]
    assert (auto.message.tool_calls, auto.finish_reason) == (None, "length")


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_keeps_its_form(client: openai.OpenAI, temperature: float) -> None:
    pytest.importorskip("xgrammar")
    found = ask(client, response_format=FORM, n=3, seed=1, temperature=temperature)
    for choice in found.choices:
        value = json.loads(choice.message.content)
        assert list(value) == ["paid", "kind"]
        assert (type(value["paid"]), value["kind"] in {"lamp", "灯"}) == (bool, True)
        assert choice.finish_reason == "stop"
    text = ask(client, response_format={"type": "json_object"}).choices[0].message.content
    assert text.startswith("{")


def test_a_wrong_schema_is_a_bad_request(client: openai.OpenAI) -> None:
    pytest.importorskip("xgrammar")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wrong"}}}
    for is_stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="Unsupported type"):
            ask(client, response_format=form, stream=is_stream)
    assert ask(client, max_tokens=2).usage.completion_tokens == 2


@pytest.mark.parametrize("is_stream", [False, True])
def test_log_probabilities_of_a_chat(client: openai.OpenAI, is_stream: bool) -> None:
    found = ask(client, max_tokens=5, logprobs=True, stream=is_stream)
    choices = [chunk.choices[0] for chunk in found] if is_stream else found.choices
    told = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
    assert len(told) == 5
    assert all(one.logprob < 0 and one.top_logprobs == [] for one in told)
    whole = ask(client, max_tokens=5, logprobs=True).choices[0].logprobs.content
    assert [one.token for one in told] == [one.token for one in whole]


def test_log_probabilities_of_a_text(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "tiny-model", "prompt": "Where", "max_tokens": 4}
    told = client.completions.create(**fields, logprobs=0, temperature=0).choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.text_offset is not None
    assert (len(told.tokens), told.text_offset[0]) == (4, 0)


@pytest.fixture
def is_openvino(request: pytest.FixtureRequest) -> bool:
    return request.node.callspec.params["client"] == "openvino"


def test_the_likeliest_tokens_are_told_or_refused(client: openai.OpenAI, is_openvino: bool) -> None:
    fields: dict[str, Any] = {"max_tokens": 3, "logprobs": True, "top_logprobs": 5}
    if is_openvino:
        with pytest.raises(openai.BadRequestError, match="of the chosen token only"):
            ask(client, **fields)
        return
    for one in ask(client, **fields).choices[0].logprobs.content:
        assert len(one.top_logprobs) == 5
        assert one.top_logprobs[0].token == one.token
        assert sum(math.exp(other.logprob) for other in one.top_logprobs) <= 1


def test_bias_is_obeyed_or_refused(client: openai.OpenAI, is_openvino: bool) -> None:
    fields: dict[str, Any] = {"max_tokens": 3, "logprobs": True, "logit_bias": {"40": 100}}
    if is_openvino:
        with pytest.raises(openai.BadRequestError, match="OpenVINO cannot change logits"):
            ask(client, **fields)
        return
    told = ask(client, **fields).choices[0].logprobs.content
    assert len({one.token for one in told}) == 1


def test_adapters_are_models_that_come_and_go(client: openai.OpenAI, folders: list[Path]) -> None:
    def said(model: str) -> str:
        return ask(client, model=model, max_tokens=12).choices[0].message.content

    def post(path: str, **body: str) -> Any:
        return client.post(path, body=body, cast_to=object)

    base, warm = said("tiny-model"), said("warm")
    assert base != warm
    post("/load_lora_adapter", lora_name="cool", lora_path=str(folders[1]))
    assert [model.id for model in client.models.list()] == ["tiny-model", "warm", "cool"]
    assert len({base, warm, said("cool")}) == 3
    assert (said("tiny-model"), said("warm")) == (base, warm)
    with pytest.raises(openai.BadRequestError, match="lora_path: `/no/such/folder`"):
        post("/load_lora_adapter", lora_name="x", lora_path="/no/such/folder")
    post("/unload_lora_adapter", lora_name="cool")
    with pytest.raises(openai.NotFoundError, match=r"known: tiny-model, warm"):
        said("cool")
