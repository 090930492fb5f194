"""OpenAI's requests read and checked, and its responses written.

A field is obeyed, or it asks for what happens anyway, or the request is refused with status 400 and
the field's name: nothing is ignored in silence. Field names: the OpenAI API reference of 2026.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from dialoop.chat.message import Message, from_openai
from dialoop.core.errors import UserError
from dialoop.engines import Request, Sampling
from dialoop.serve.failure import ApiError, bad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.chat.template import Template

Json = dict[str, Any]
Kind = Literal["chat", "text"]

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
}
_OBEYED: dict[Kind, set[str]] = {
    "chat": _SHARED | {"messages", "max_completion_tokens"},
    "text": _SHARED | {"prompt", "echo"},
}
_INFORMATION = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
"""Fields that are about the request and ask for nothing."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
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
    prompt = _chat_ids(_messages(body.get("messages")), template)
    wanted = _integer(body, "max_completion_tokens", 1, None)
    if wanted is None:
        wanted = _integer(body, "max_tokens", 1, None)
    return _generation("chat", body, [(tuple(prompt), "")], wanted, template, limits)


def read_text(body: Json, template: Template, limits: Limits) -> Generation:
    """Check a text completion request.

    Raises:
        ApiError: a field is wrong or asks for what is not offered.
    """
    _check_fields("text", body, limits)
    wanted = _integer(body, "max_tokens", 1, None) or 16  # OpenAI's default for this endpoint
    echo = _flag(body, "echo")
    prompts = [
        (ids, template.tokenizer.decode(ids) if echo else "")
        for ids in _prompts(body.get("prompt"), template)
    ]
    return _generation("text", body, prompts, wanted, template, limits)


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
    model = body.get("model")
    if not isinstance(model, str):
        raise bad("model", "the name of a model is required")
    if model != limits.model:
        raise ApiError(
            404,
            f"model `{model}` is not served here (known: {limits.model})",
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


def _chat_ids(messages: list[Message], template: Template) -> list[int]:
    try:
        return template.prompt_ids(messages)
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
    prompts: Sequence[tuple[tuple[int, ...], str]],
    wanted: int | None,
    template: Template,
    limits: Limits,
) -> Generation:
    num = _integer(body, "n", 1, _MAX_CHOICES) or 1
    requests: list[Request] = []
    for ids, _ in prompts:
        room = _room(len(ids), wanted, limits)
        for choice in range(num):
            sampling = _sampling(body, room, choice)
            requests.append(Request(ids, sampling, template.stop_ids))
    is_stream = _flag(body, "stream")
    return Generation(
        kind=kind,
        requests=tuple(requests),
        echoes=tuple(echo for _, echo in prompts for _ in range(num)),
        stops=_stops(body.get("stop")),
        is_stream=is_stream,
        has_usage=_has_usage(body.get("stream_options"), is_stream=is_stream),
        num_choices=num,
    )


def _has_usage(options: Any, *, is_stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict) or not cast("Json", options).keys() <= {"include_usage"}:
        raise bad("stream_options", "only `include_usage` is known")
    if not is_stream:
        raise bad("stream_options", "only with `stream`")
    return _flag(cast("Json", options), "include_usage")


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


def _sampling(body: Json, max_tokens: int, choice: int) -> Sampling:
    seed = _integer(body, "seed", -(2**63), 2**63 - 1)
    return Sampling(
        max_tokens=max_tokens,
        temperature=_number(body, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(body, "top_p", 1.0, 1e-9, 1.0),
        top_k=_integer(body, "top_k", 0, None) or 0,
        presence_penalty=_number(body, "presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, -2.0, 2.0),
        # choices of one request must differ, and be the same again for the same seed
        seed=None if seed is None else (seed + choice) % 2**63,
    )


def _stops(raw: Any) -> tuple[str, ...]:
    items: Any = [raw] if isinstance(raw, str) else raw or []
    if not isinstance(items, list) or not all(
        isinstance(item, str) and item for item in cast("list[Any]", items)
    ):
        raise bad("stop", "a text or a list of texts is required, none of them empty")
    if len(cast("list[Any]", items)) > 16:
        raise bad("stop", "at most 16 texts")
    return tuple(cast("list[str]", items))


def _number(body: Json, name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise bad(name, f"a number from {low:g} to {high:g} is required, got {value!r}")
    return float(value)


def _integer(body: Json, name: str, low: int, high: int | None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < low or (high is not None and value > high):
        above = "" if high is None else f" to {high}"
        raise bad(name, f"a whole number from {low}{above} is required, got {value!r}")
    return value


def _flag(body: Json, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad(name, f"true or false is required, got {value!r}")
    return bool(value)


@dataclass(frozen=True, slots=True)
class Writer:
    """Responses of one request."""

    id: str
    kind: Kind
    model: str
    created: int

    @classmethod
    def of(cls, kind: Kind, name: str, model: str) -> Writer:
        """A writer for a request that came now."""
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        return cls(f"{prefix}-{name}", kind, model, int(time.time()))

    def whole(self, choices: list[tuple[str, str]], usage: Json) -> Json:
        """The response without a stream; a choice is its text and why it ended."""
        if self.kind == "text":
            listed = [
                {"index": n, "text": text, "logprobs": None, "finish_reason": finish}
                for n, (text, finish) in enumerate(choices)
            ]
            return self._head("text_completion") | {"choices": listed, "usage": usage}
        listed = [
            {
                "index": n,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": finish,
            }
            for n, (text, finish) in enumerate(choices)
        ]
        return self._head("chat.completion") | {"choices": listed, "usage": usage}

    def chunk(self, index: int, text: str | None, finish: str | None, *, first: bool) -> Json:
        """One event of a stream."""
        if self.kind == "text":
            choice: Json = {"index": index, "text": text or ""}
            choice |= {"logprobs": None, "finish_reason": finish}
            return self._head("text_completion") | {"choices": [choice]}
        delta: Json = {"role": "assistant", "content": ""} if first else {}
        if text:
            delta["content"] = text
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def usage_chunk(self, usage: Json) -> Json:
        """The event that counts, last before the end."""
        kind = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return self._head(kind) | {"choices": [], "usage": usage}

    def _head(self, object_name: str) -> Json:
        head: Json = {"id": self.id, "object": object_name}
        return head | {"created": self.created, "model": self.model}


def usage(num_prompt: int, num_new: int) -> Json:
    """Token counts as OpenAI spells them."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_new,
        "total_tokens": num_prompt + num_new,
    }
