"""Fields of a request, each read by its kind or refused by its name."""

from __future__ import annotations

from typing import Any, cast

from dialoop.serve.failure import bad

Json = dict[str, Any]


def has_usage(options: Any, *, is_stream: bool) -> bool:
    """Whether a stream ends with a chunk that counts tokens."""
    if options is None:
        return False
    if not isinstance(options, dict) or not cast("Json", options).keys() <= {"include_usage"}:
        raise bad("stream_options", "only `include_usage` is known")
    if not is_stream:
        raise bad("stream_options", "only with `stream`")
    return flag(cast("Json", options), "include_usage")


def stops(raw: Any) -> tuple[str, ...]:
    """Strings that end an answer."""
    items: Any = [raw] if isinstance(raw, str) else raw or []
    if not isinstance(items, list) or not all(
        isinstance(item, str) and item for item in cast("list[Any]", items)
    ):
        raise bad("stop", "a text or a list of texts is required, none of them empty")
    if len(cast("list[Any]", items)) > 16:
        raise bad("stop", "at most 16 texts")
    return tuple(cast("list[str]", items))


def number(body: Json, name: str, default: float, low: float, high: float) -> float:
    """A number in a range, or the default where there is none."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise bad(name, f"a number from {low:g} to {high:g} is required, got {value!r}")
    return float(value)


def integer(body: Json, name: str, low: int, high: int | None) -> int | None:
    """A whole number in a range, or None."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < low or (high is not None and value > high):
        above = "" if high is None else f" to {high}"
        raise bad(name, f"a whole number from {low}{above} is required, got {value!r}")
    return value


def flag(body: Json, name: str) -> bool:
    """True or false; false where there is none."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad(name, f"true or false is required, got {value!r}")
    return bool(value)


def logit_bias(raw: Any, vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Token ids and what is added to their logits."""
    if raw is None:
        return ()
    if not isinstance(raw, dict):
        raise bad("logit_bias", "an object of token ids and numbers is required")
    out: list[tuple[int, float]] = []
    for name, value in cast("Json", raw).items():
        if not name.isdecimal() or int(name) >= vocab_size:
            raise bad("logit_bias", f"`{name}` is no token id of this model")
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 100:
            raise bad("logit_bias", f"a number from -100 to 100 is required, got {value!r}")
        out.append((int(name), float(value)))
    return tuple(out)


def chat_logprobs(body: Json) -> int | None:
    """How many likeliest tokens are told beside each token; None where nothing is told."""
    num = integer(body, "top_logprobs", 0, 20)
    if not flag(body, "logprobs"):
        if num:
            raise bad("top_logprobs", "only with `logprobs`")
        return None
    return num or 0


def text_logprobs(body: Json) -> int | None:
    """The same as text completions spell it."""
    num = integer(body, "logprobs", 0, 5)
    if num is not None and flag(body, "echo"):
        raise bad("logprobs", "not together with `echo`: those of the prompt are not known")
    return num


def schema(raw: Any) -> dict[str, Any] | None:
    """The JSON Schema of `response_format`; None where text is asked for."""
    if raw is None:
        return None
    kind = cast("Json", raw).get("type") if isinstance(raw, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise bad("response_format", "`type` is text, json_object or json_schema")
    given = cast("Json", raw).get("json_schema")
    found = cast("Json", given).get("schema") if isinstance(given, dict) else None
    if not isinstance(found, dict):
        raise bad("response_format", "json_schema.schema: a JSON Schema is required")
    return cast("Json", found)
