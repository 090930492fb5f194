"""OpenAI's requests for text, read and checked.

A field is obeyed, or it asks for what happens anyway, or the request is refused with status 400 and
the field's name: nothing is ignored in silence. Field names: the OpenAI API reference of 2026.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from dialoop.chat.message import Message, from_openai
from dialoop.core.errors import UserError
from dialoop.engines import Request, Sampling
from dialoop.serve import fields
from dialoop.serve.failure import ApiError, bad
from dialoop.serve.tools import read_calling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.chat.calls import CallSyntax
    from dialoop.chat.template import Template
    from dialoop.serve.tools import Calling
    from dialoop.serve.writer import Kind

Json = dict[str, Any]

_SHARED = {
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "seed",
    "n",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
}
_OBEYED: dict[Kind, set[str]] = {
    "chat": _SHARED
    | {"messages", "max_completion_tokens", "top_logprobs", "response_format"}
    | {"tools", "tool_choice", "parallel_tool_calls"},
    "text": _SHARED | {"prompt", "echo"},
}
_INFORMATION = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
"""Fields that are about the request and ask for nothing."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "best_of": (1,),
    "suffix": ("",),
}
"""Fields that are not offered yet, with the values that ask for nothing."""
_MAX_CHOICES = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model allows."""

    max_length: int
    """Prompt and answer together, in tokens."""
    model: str
    """The name that clients ask for."""
    adapter: str | None = None
    """The engine's name of the adapter that this model is; None for the model itself."""
    known: tuple[str, ...] = ()
    """All names that are served."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked request."""

    kind: Kind
    requests: tuple[Request, ...]
    """One for every choice, prompt by prompt."""
    echoes: tuple[str, ...]
    """By choice: the prompt's text where it is to be repeated, else empty."""
    stops: tuple[str, ...]
    is_stream: bool
    has_usage: bool
    """Whether a stream ends with a chunk that counts tokens."""
    num_choices: int
    """By prompt."""
    syntax: CallSyntax | None = None
    """How tool calls are written in the answer; None where none are looked for."""
    opening: str = ""
    """Text that the prompt ends in and the answer's first call begins with."""
    is_single: bool = False
    """Whether an answer ends with its first call."""

    @property
    def num_prompt_tokens(self) -> int:
        """Every prompt counted once, however many choices it has."""
        prompts = self.requests[:: self.num_choices]
        return sum(len(request.prompt_ids) for request in prompts)


def read_chat(body: Json, template: Template, limits: Limits) -> Generation:
    """Check a chat completion request.

    Raises:
        ApiError: a field is wrong or asks for what is not offered.
    """
    _check_fields("chat", body, limits)
    calling = read_calling(body, template)
    schema = fields.schema(body.get("response_format"))
    if calling and schema:
        raise bad("response_format", "not together with `tools`: set `tool_choice` to `none`")
    prompt = _chat_ids(_messages(body.get("messages")), template, calling)
    wanted = fields.integer(body, "max_completion_tokens", 1, None)
    if wanted is None:
        wanted = fields.integer(body, "max_tokens", 1, None)
    told = fields.chat_logprobs(body)
    sampling = _sampling(body, template, told)
    schema = schema or (calling.schema if calling else None)
    asked = Request(
        tuple(prompt), sampling, template.stop_ids, json.dumps(schema) if schema else None
    )
    found = _generation("chat", body, [(asked, "")], wanted, limits)
    if calling is None:
        return found
    opening = calling.syntax.begin if calling.schema else ""
    return replace(found, syntax=calling.syntax, opening=opening, is_single=calling.is_single)


def read_text(body: Json, template: Template, limits: Limits) -> Generation:
    """Check a text completion request.

    Raises:
        ApiError: a field is wrong or asks for what is not offered.
    """
    _check_fields("text", body, limits)
    wanted = fields.integer(body, "max_tokens", 1, None) or 16  # OpenAI's default for this endpoint
    echo = fields.flag(body, "echo")
    sampling = _sampling(body, template, fields.text_logprobs(body))
    prompts = [
        (Request(ids, sampling, template.stop_ids), template.tokenizer.decode(ids) if echo else "")
        for ids in _prompts(body.get("prompt"), template)
    ]
    return _generation("text", body, prompts, wanted, limits)


def read_tokens(body: Json, template: Template, limits: Limits) -> list[int]:
    """The ids that a chat request's messages, or a text completion's prompt, are sent as.

    The fields are those of vLLM's `/tokenize`.

    Raises:
        ApiError: a field is wrong or asks for what is not offered.
    """
    kind: Kind = "text" if "prompt" in body else "chat"
    known = {"text": {"prompt"}, "chat": {"messages", "tools", "add_generation_prompt"}}[kind]
    for name, value in body.items():
        if name not in known | {"model"} and value is not None:
            raise bad(name, "unknown parameter")
    if body.get("add_generation_prompt", True) is not True:
        raise bad("add_generation_prompt", "only true is offered: what a chat request sends")
    _check_model(body, limits)
    if kind == "text":
        prompts = _prompts(body["prompt"], template)
        if len(prompts) != 1:
            raise bad("prompt", "one text is required")
        return list(prompts[0])
    return _chat_ids(_messages(body.get("messages")), template, read_calling(body, template))


def _check_fields(kind: Kind, body: Json, limits: Limits) -> None:
    for name, value in body.items():
        if name in _OBEYED[kind] or name in _INFORMATION or value is None:
            continue
        if name not in _NEUTRAL:
            raise bad(name, "unknown parameter")
        if not any(value == plain and type(value) is type(plain) for plain in _NEUTRAL[name]):
            raise ApiError(
                400,
                f"{name}: this server does not offer it",
                param=name,
                code="unsupported_parameter",
            )
    _check_model(body, limits)


def _check_model(body: Json, limits: Limits) -> None:
    model = body.get("model")
    if not isinstance(model, str):
        raise bad("model", "the name of a model is required")
    if model != limits.model:
        known = ", ".join(limits.known or (limits.model,))
        raise ApiError(
            404,
            f"model `{model}` is not served here (known: {known})",
            param="model",
            code="model_not_found",
        )


def _messages(raw: Any) -> list[Message]:
    if not isinstance(raw, list) or not raw:
        raise bad("messages", "a list of at least one message is required")
    items = cast("list[Any]", raw)
    try:
        messages = [from_openai(item, f"messages[{n}]") for n, item in enumerate(items)]
    except UserError as error:
        raise _from_user(error, "messages") from error
    for n, message in enumerate(messages):
        if message.images:
            raise bad(f"messages[{n}].content", "this model takes no images")
    return messages


def _chat_ids(messages: list[Message], template: Template, calling: Calling | None) -> list[int]:
    try:
        ids = template.prompt_ids(messages, calling.tools if calling else ())
        if calling and calling.schema and calling.syntax.begin:
            ids += template.tokenizer.encode_after(calling.syntax.begin)
        return ids
    except UserError as error:
        raise _from_user(error, "messages") from error


def _from_user(error: UserError, param: str) -> ApiError:
    return ApiError(400, Exception.__str__(error), param=param)


def _prompts(raw: Any, template: Template) -> list[tuple[int, ...]]:
    if isinstance(raw, str):
        return [_text_ids(raw, template)]
    if isinstance(raw, list) and raw:
        items = cast("list[Any]", raw)
        if all(isinstance(item, str) for item in items):
            return [_text_ids(item, template) for item in items]
        if _is_ids(items, template):
            return [tuple(items)]
        if all(
            isinstance(item, list) and _is_ids(cast("list[Any]", item), template) for item in items
        ):
            return [tuple(item) for item in items]
    raise bad("prompt", "text, a list of texts, token ids or a list of lists of them is required")


def _is_ids(values: list[Any], template: Template) -> bool:
    size = template.tokenizer.vocab_size
    return bool(values) and all(type(value) is int and 0 <= value < size for value in values)


def _text_ids(text: str, template: Template) -> tuple[int, ...]:
    tokenizer = template.tokenizer
    ids = tokenizer.encode(text)
    bos = tokenizer.token_id(tokenizer.bos_token) if tokenizer.bos_token else None
    if bos is not None and (tokenizer.add_bos or not ids):
        ids = [bos, *ids]
    if not ids:
        raise bad("prompt", "an empty text cannot be continued by this model")
    return tuple(ids)


def _generation(
    kind: Kind,
    body: Json,
    prompts: Sequence[tuple[Request, str]],
    wanted: int | None,
    limits: Limits,
) -> Generation:
    num = fields.integer(body, "n", 1, _MAX_CHOICES) or 1
    requests: list[Request] = []
    for asked, _ in prompts:
        room = _room(len(asked.prompt_ids), wanted, limits)
        seed = asked.sampling.seed
        for choice in range(num):
            # choices of one request must differ, and be the same again for the same seed
            own = None if seed is None else (seed + choice) % 2**63
            sampling = replace(asked.sampling, max_tokens=room, seed=own)
            requests.append(replace(asked, sampling=sampling, adapter=limits.adapter))
    is_stream = fields.flag(body, "stream")
    return Generation(
        kind=kind,
        requests=tuple(requests),
        echoes=tuple(echo for _, echo in prompts for _ in range(num)),
        stops=fields.stops(body.get("stop")),
        is_stream=is_stream,
        has_usage=fields.has_usage(body.get("stream_options"), is_stream=is_stream),
        num_choices=num,
    )


def _room(num_prompt: int, wanted: int | None, limits: Limits) -> int:
    left = limits.max_length - num_prompt
    if left < 1 or (wanted or 0) > left:
        asked = f" and asks for {wanted} more" if wanted else ""
        raise ApiError(
            400,
            f"This model's maximum context length is {limits.max_length} tokens. "
            f"The request has {num_prompt}{asked}.",
            param="messages",
            code="context_length_exceeded",
        )
    return wanted or left


def _sampling(body: Json, template: Template, told: int | None) -> Sampling:
    """How tokens are chosen, but for how many."""
    return Sampling(
        max_tokens=1,
        temperature=fields.number(body, "temperature", 1.0, 0.0, 2.0),
        top_p=fields.number(body, "top_p", 1.0, 1e-9, 1.0),
        top_k=fields.integer(body, "top_k", 0, None) or 0,
        presence_penalty=fields.number(body, "presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=fields.number(body, "frequency_penalty", 0.0, -2.0, 2.0),
        seed=fields.integer(body, "seed", -(2**63), 2**63 - 1),
        logit_bias=fields.logit_bias(body.get("logit_bias"), template.tokenizer.vocab_size),
        logprobs=told,
    )
