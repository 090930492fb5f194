"""Requests, read and checked as far as the gateway answers for them; the rest is the engine's.

A field that OpenAI's API or an engine's extensions know is passed on, and the engine obeys or
refuses it. An unknown one is refused here, because some engines ignore it in silence. Field names:
the OpenAI API reference, vLLM 0.26 and SGLang 0.5, of 2026.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from dialoop.gateway.call import as_object
from dialoop.serve import fields
from dialoop.serve.failure import ApiError, bad

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dialoop.gateway.spec import Kind, Sizes

Json = dict[str, Any]

PATHS: dict[Kind, bytes] = {
    "chat": b"/chat/completions",
    "text": b"/completions",
    "embed": b"/embeddings",
    "rerank": b"/rerank",
}
"""Where engines are asked, by kind."""

OWN = frozenset({"conversation", "pins", "cache"})
"""Fields that are the gateway's own; engines never see them."""
_ABOUT = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier"})
"""Fields about the request, which ask for nothing; engines never see them."""
_SAMPLING = frozenset({
    "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "n", "stop", "seed",
    "presence_penalty", "frequency_penalty", "logit_bias", "logprobs",
    # engines' own
    "top_k", "min_p", "repetition_penalty", "length_penalty", "min_tokens", "ignore_eos",
    "stop_token_ids", "bad_words", "skip_special_tokens", "spaces_between_special_tokens",
    "include_stop_str_in_output", "truncate_prompt_tokens", "priority", "structured_outputs",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex", "ebnf",
    "return_token_ids", "return_tokens_as_token_ids", "add_special_tokens", "prompt_logprobs",
})  # fmt: skip
_KNOWN: dict[Kind, frozenset[str]] = {
    "chat": _SAMPLING | _ABOUT | OWN | {
        "messages", "max_completion_tokens", "top_logprobs", "response_format", "tools",
        "tool_choice", "parallel_tool_calls", "functions", "function_call", "reasoning_effort",
        "verbosity", "modalities", "audio", "prediction", "store", "web_search_options",
        "prompt_cache_retention",
        "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message",
        "documents", "mm_processor_kwargs", "separate_reasoning", "enable_thinking",
        "include_reasoning",
    },
    "text": _SAMPLING | _ABOUT | {
        "prompt", "echo", "best_of", "suffix", "response_format", "cache",
    },
    "embed": _ABOUT | {
        "model", "input", "encoding_format", "dimensions", "truncate_prompt_tokens", "normalize",
        "add_special_tokens", "priority",
    },
    "rerank": _ABOUT | {
        "model", "query", "documents", "top_n", "return_documents", "max_tokens_per_doc",
        "truncate_prompt_tokens", "instruction", "rank_fields", "max_chunks_per_doc",
        "overlap_tokens", "priority",
    },
}  # fmt: skip
_IMAGE_PARTS = ("image_url", "input_image", "image")


def check(kind: Kind, body: Json, sizes: Sizes) -> None:
    """Check what the gateway answers for: names of fields, kinds of values, sizes.

    Raises:
        ApiError: with the field's name.
    """
    for name in body:
        if name not in _KNOWN[kind] and body[name] is not None:
            raise bad(name[:100], "unknown parameter")
    if not isinstance(body.get("model"), str):
        raise bad("model", "the name of a model is required")
    tier = body.get("service_tier")
    if tier not in (None, "auto", "default"):
        raise ApiError(
            400, "service_tier: there is only the default one here", param="service_tier"
        )
    if kind == "chat":
        _check_messages(body, sizes)
    elif kind == "text":
        _check_prompt(body.get("prompt"), sizes)
    elif kind == "embed":
        _check_prompt(body.get("input"), sizes, "input")
    else:
        _check_documents(body, sizes)


def is_stream(body: Json) -> bool:
    """Whether an event stream is asked for."""
    return fields.flag(body, "stream")


def wants_usage(body: Json) -> bool:
    """Whether the client's stream ends with a count of tokens."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise bad("stream_options", "an object is required")
    if not is_stream(body):
        raise bad("stream_options", "only with `stream`")
    return fields.flag(cast("Json", options), "include_usage")


def num_choices(kind: Kind, body: Json) -> int:
    """How many answers a completion has."""
    num = fields.integer(body, "n", 1, 128) or 1
    prompt = body.get("prompt")
    if kind == "text" and isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return num * len(cast("list[Any]", prompt))
    return num


def outgoing(body: Json) -> Json:
    """A body as engines get it: without the fields that are not for them."""
    gone = OWN | _ABOUT | {"store"}
    return {name: value for name, value in body.items() if name not in gone and value is not None}


def texts(body: Json) -> Iterator[str]:
    """Every text of a request that a model reads, for filters and estimates."""
    for message in body.get("messages") or ():
        yield from _content_texts(message.get("content"))
        for call in message.get("tool_calls") or ():
            arguments = as_object(as_object(call).get("function")).get("arguments")
            if isinstance(arguments, str):
                yield arguments
    for name in ("prompt", "input", "query", "documents", "suffix"):
        yield from _content_texts(body.get(name))


def estimate_tokens(body: Json) -> int:
    """About how many tokens a prompt has, before an engine has counted them: high rather than low.

    UTF-8 bytes by 3.5 is near for English, and a half too high for Chinese.
    """
    num = sum(len(text.encode("utf-8", "replace")) for text in texts(body))
    return int(num / 3.5) + 8


def asked_tokens(body: Json) -> int:
    """How many tokens an answer may have at most, where the request says so."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.integer(body, name, 1, None)
        if value is not None:
            return value
    return 0


def _content_texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in cast("list[Any]", content):
            text = part if isinstance(part, str) else as_object(part).get("text")
            if isinstance(text, str):
                yield text


def _check_messages(body: Json, sizes: Sizes) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages", "a list of at least one message is required")
    items = cast("list[Any]", messages)
    if len(items) > sizes.max_messages:
        raise bad(
            "messages", f"{len(items)} messages are more than the {sizes.max_messages} allowed"
        )
    num_images = 0
    for place, message in enumerate(items):
        if not isinstance(as_object(message).get("role"), str):
            raise bad(f"messages[{place}]", "an object with a `role` is required")
        content = message.get("content")
        if isinstance(content, list):
            num_images += _check_parts(cast("list[Any]", content), place, sizes)
        elif content is not None and not isinstance(content, str):
            raise bad(f"messages[{place}].content", "a text or a list of parts is required")
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            raise bad(f"messages[{place}].tool_calls", "a list is required")
    if num_images > sizes.max_images:
        raise bad("messages", f"{num_images} images are more than the {sizes.max_images} allowed")
    _check_chars(body, sizes, "messages")


def _check_parts(parts: list[Any], place: int, sizes: Sizes) -> int:
    """The number of images."""
    num = 0
    for part in parts:
        if not isinstance(as_object(part).get("type"), str):
            raise bad(f"messages[{place}].content", "every part is an object with a `type`")
        if part["type"] not in _IMAGE_PARTS:
            continue
        num += 1
        image = part.get("image_url")
        url = image if isinstance(image, str) else as_object(image).get("url")
        if isinstance(url, str) and len(url) * 3 // 4 > sizes.max_image_bytes:
            raise ApiError(
                413, f"messages[{place}]: an image is larger than {sizes.max_image_bytes} bytes"
            )
    return num


def _check_prompt(prompt: Any, sizes: Sizes, name: str = "prompt") -> None:
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt):
        _check_chars({name: prompt}, sizes, name)
        return
    raise bad(name, "a text, a list of texts, token ids or a list of lists of them is required")


def _check_documents(body: Json, sizes: Sizes) -> None:
    if not isinstance(body.get("query"), str | dict):
        raise bad("query", "a text is required")
    documents = body.get("documents")
    if not isinstance(documents, list) or not documents:
        raise bad("documents", "a list of at least one text is required")
    _check_chars(body, sizes, "documents")


def _check_chars(body: Json, sizes: Sizes, name: str) -> None:
    num = sum(len(text) for text in texts(body))
    if num > sizes.max_prompt_chars:
        raise ApiError(
            413, f"{name}: {num} characters are more than the {sizes.max_prompt_chars} allowed"
        )
