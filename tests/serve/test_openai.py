"""Requests are obeyed, or refused with the field's name."""

import json
from typing import Any

import pytest

from dialoop.chat.message import message, tool_from_openai
from dialoop.chat.template import Template
from dialoop.serve.failure import ApiError
from dialoop.serve.openai import Generation, Limits, read_chat, read_text, read_tokens

LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"kind": {"enum": ["order", "lamp"]}},
            "required": ["kind"],
            "additionalProperties": False,
        },
    },
}
STRICT = {"type": "function", "function": LOOK_UP["function"] | {"strict": True}}
JSON = {"type": "json_object"}
LIMITS = Limits(max_length=256, model="m")
HELLO = [{"role": "user", "content": "Where is my order?"}]


def chat(template: Template, **fields: Any) -> Generation:
    return read_chat({"model": "m", "messages": HELLO} | fields, template, LIMITS)


def text(template: Template, **fields: Any) -> Generation:
    return read_text({"model": "m", "prompt": "Where"} | fields, template, LIMITS)


def test_the_prompt_is_the_templates(template: Template) -> None:
    found = chat(template)
    expected = tuple(template.prompt_ids([message("user", "Where is my order?")]))
    assert [request.prompt_ids for request in found.requests] == [expected]
    assert found.requests[0].stop_ids == template.stop_ids
    assert found.requests[0].sampling.max_tokens == 256 - len(expected)
    assert found.requests[0].sampling.temperature == 1.0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_spellings_of_the_longest_answer(template: Template, name: str) -> None:
    assert chat(template, **{name: 7}).requests[0].sampling.max_tokens == 7


def test_sampling_fields_are_obeyed(template: Template) -> None:
    fields = {"temperature": 0.5, "top_p": 0.8, "top_k": 3, "presence_penalty": 1}
    sampling = chat(template, **fields, frequency_penalty=-0.5, seed=4).requests[0].sampling
    found = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.presence_penalty)
    assert found == (0.5, 0.8, 3, 1.0)
    assert (sampling.frequency_penalty, sampling.seed) == (-0.5, 4)


def test_choices_of_one_request_have_seeds_of_their_own(template: Template) -> None:
    found = chat(template, n=3, seed=10)
    assert [request.sampling.seed for request in found.requests] == [10, 11, 12]
    assert found.num_prompt_tokens == len(found.requests[0].prompt_ids)


def test_stop_is_a_text_or_a_list(template: Template) -> None:
    assert chat(template, stop="x").stops == ("x",)
    assert chat(template, stop=["x", "y"]).stops == ("x", "y")


def test_a_developer_message_is_a_system_message(template: Template) -> None:
    turns = [{"role": "developer", "content": "Be short."}, *HELLO]
    found = read_chat({"model": "m", "messages": turns}, template, LIMITS)
    own = [message("system", "Be short."), message("user", "Where is my order?")]
    assert found.requests[0].prompt_ids == tuple(template.prompt_ids(own))


@pytest.mark.parametrize("name", ["tools", "logprobs", "response_format", "logit_bias", "user"])
def test_null_asks_for_nothing(template: Template, name: str) -> None:
    assert chat(template, **{name: None}).requests


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "an object with a function name"),
        ({"tools": [{"type": "web_search"}]}, "tools", "only tools of type `function`"),
        ({"tools": [LOOK_UP, LOOK_UP]}, "tools", "stands twice"),
        ({"tools": [STRICT]}, "tools", "`strict` of look_up can be kept only where"),
        ({"tool_choice": "required"}, "tool_choice", "tools: none are given"),
        ({"tools": [LOOK_UP], "tool_choice": "any"}, "tool_choice", "tools: look_up"),
        ({"tools": [LOOK_UP], "parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
        ({"tools": [LOOK_UP], "response_format": JSON}, "response_format", "not together with"),
        ({"logprobs": 1}, "logprobs", "true or false is required, got 1"),
        ({"top_logprobs": 2}, "top_logprobs", "only with `logprobs`"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"response_format": {"type": "xml"}}, "response_format", "`type` is text, json_object or"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "a JSON Schema is req"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "`99999` is no token id"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "a number from -100 to 100"),
        ({"suffix": "x"}, "suffix", "does not offer it"),
        ({"temprature": 1}, "temprature", "unknown parameter"),
        ({"temperature": 2.5}, "temperature", "a number from 0 to 2 is required, got 2.5"),
        ({"temperature": True}, "temperature", "a number from 0 to 2"),
        ({"top_p": 0}, "top_p", "a number from"),
        ({"max_tokens": 0}, "max_tokens", "a whole number from 1 is required, got 0"),
        ({"max_tokens": "8"}, "max_tokens", "a whole number from 1"),
        ({"n": 65}, "n", "a whole number from 1 to 64"),
        ({"stop": [""]}, "stop", "none of them empty"),
        ({"stop": 5}, "stop", "a text or a list of texts"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stream": "yes"}, "stream", "true or false is required"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only with `stream`"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "only `include_usage`"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "hi"}, "messages", "at least one message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "unknown role 'robot'"),
        ({"model": None}, "model", "a model is required"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(
    template: Template, fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        chat(template, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_bias_and_logprobs_are_obeyed(template: Template) -> None:
    fields = {"logit_bias": {"5": -3}, "logprobs": True, "top_logprobs": 2}
    sampling = chat(template, **fields).requests[0].sampling
    assert (sampling.logit_bias, sampling.logprobs) == (((5, -3.0),), 2)
    assert chat(template, logprobs=True).requests[0].sampling.logprobs == 0
    assert text(template, logprobs=3).requests[0].sampling.logprobs == 3
    with pytest.raises(ApiError, match="not together with `echo`"):
        text(template, logprobs=3, echo=True)


def test_tools_are_told_by_the_template_and_forced_calls_have_a_schema(template: Template) -> None:
    own = [message("user", "Where is my order?")]
    tool = tool_from_openai(LOOK_UP)
    told = template.prompt_ids(own, [tool])
    body = {"model": "m", "messages": HELLO, "tools": [LOOK_UP]}
    limits = Limits(max_length=1024, model="m")
    (auto,) = read_chat(body, template, limits).requests
    assert (auto.prompt_ids, auto.schema) == (tuple(told), None)
    for choice in ("required", {"type": "function", "function": {"name": "look_up"}}):
        (forced,) = read_chat(body | {"tool_choice": choice}, template, limits).requests
        assert forced.prompt_ids == (*told, *template.tokenizer.encode_after("<tool_call>\n"))
        assert '"const": "look_up"' in (forced.schema or "")
    (none,) = read_chat(body | {"tool_choice": "none"}, template, limits).requests
    assert none.prompt_ids == tuple(template.prompt_ids(own))


def test_tokens_are_those_that_are_sent(template: Template) -> None:
    limits = Limits(max_length=1024, model="m")
    body = {"model": "m", "messages": HELLO, "tools": [LOOK_UP]}
    (sent,) = read_chat(body, template, limits).requests
    told = read_tokens(body | {"add_generation_prompt": True}, template, limits)
    assert told == list(sent.prompt_ids)
    plain = {"model": "m", "prompt": "Where is"}
    (sent,) = read_text(plain, template, limits).requests
    assert read_tokens(plain, template, limits) == list(sent.prompt_ids)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"add_generation_prompt": False}, "only true is offered"),
        ({"return_token_strs": True}, "unknown parameter"),
        ({"model": "gpt"}, "not served here"),
        ({"prompt": ["a", "b"], "messages": None}, "one text is required"),
    ],
)
def test_tokens_of_what_is_not_offered_are_refused(
    template: Template, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ApiError, match=words):
        read_tokens({"model": "m", "messages": HELLO} | fields, template, LIMITS)


def test_response_formats_are_schemas(template: Template) -> None:
    own = {"type": "object", "properties": {"a": {"type": "boolean"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": own, "strict": True}}
    assert json.loads(chat(template, response_format=form).requests[0].schema or "") == own
    assert chat(template, response_format=JSON).requests[0].schema == '{"type": "object"}'
    assert chat(template, response_format={"type": "text"}).requests[0].schema is None


def test_images_are_refused(template: Template) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    with pytest.raises(ApiError, match="takes no images"):
        chat(template, messages=[{"role": "user", "content": [part]}])


def test_another_model_is_not_found(template: Template) -> None:
    with pytest.raises(ApiError, match=r"model `gpt` is not served here \(known: m\)") as caught:
        chat(template, model="gpt")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    "fields", [{"messages": [{"role": "user", "content": "x " * 400}]}, {"max_tokens": 250}]
)
def test_too_long_has_openais_code(template: Template, fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="maximum context length is 256 tokens") as caught:
        chat(template, **fields)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_prompts_of_text_completions(template: Template) -> None:
    ids = tuple(template.tokenizer.encode("Where"))
    for prompt, expected in [
        ("Where", [ids]),
        (["Where", "Where"], [ids, ids]),
        ([5, 6], [(5, 6)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
    ]:
        found = text(template, prompt=prompt)
        assert [request.prompt_ids for request in found.requests] == expected
        assert found.requests[0].sampling.max_tokens == 16


@pytest.mark.parametrize("prompt", [None, [], [[]], [5, "x"], [-1], [10**9], {"a": 1}])
def test_other_prompts_are_refused(template: Template, prompt: Any) -> None:
    with pytest.raises(ApiError, match="prompt: "):
        text(template, prompt=prompt)


def test_echo_repeats_the_prompt(template: Template) -> None:
    assert text(template, echo=True, n=2).echoes == ("Where", "Where")
    assert text(template).echoes == ("",)
