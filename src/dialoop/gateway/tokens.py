"""`/tokenize` and `/detokenize` in vLLM's spelling, by the model's own tokenizer.

Source: vLLM 0.26, `vllm/entrypoints/serve/tokenize/protocol.py`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from dialoop.chat.message import from_openai, tool_from_openai
from dialoop.serve import fields
from dialoop.serve.failure import ApiError, bad

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.chat.template import Template
    from dialoop.gateway.app import App, Handler
    from dialoop.gateway.pool import Model
    from dialoop.gateway.visit import Visit

Json = dict[str, Any]

_TOKENIZE = frozenset({
    "model", "prompt", "messages", "tools", "add_special_tokens", "add_generation_prompt",
    "continue_final_message", "return_token_strs",
})  # fmt: skip
_DETOKENIZE = frozenset({"model", "tokens"})
_LONG = 20_000
"""Bytes of a body from which the work is done in a thread, so that streams go on."""


class TokensApi:
    """Answers for tokens.

    Args:
        app: for what it works with now.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Methods, paths and what answers them."""
        return [
            ("POST", prefix + path, handler)
            for prefix in ("", "/v1")
            for path, handler in (
                ("/tokenize", self._tokenize),
                ("/detokenize", self._detokenize),
            )
        ]

    async def _tokenize(self, visit: Visit) -> None:
        body, model, template = await self._asked(visit, _TOKENIZE)
        ids = await _worked(visit, lambda: _ids(body, template))
        found: Json = {
            "count": len(ids),
            "max_model_len": self._app.parts.contexts.window(model),
            "tokens": ids,
            "token_strs": None,
        }
        if fields.flag(body, "return_token_strs"):
            decode = template.tokenizer.decode
            found["token_strs"] = [decode([one], skip_special=False) for one in ids]
        await visit.reply.json(found)

    async def _detokenize(self, visit: Visit) -> None:
        body, _, template = await self._asked(visit, _DETOKENIZE)
        raw = body.get("tokens")
        size = template.tokenizer.vocab_size
        if not isinstance(raw, list):
            raise bad("tokens", "a list of token ids is required")
        for one in cast("list[Any]", raw):
            if type(one) is not int or not 0 <= one < size:
                raise bad("tokens", f"{one!r:.50} is no token id of this model (0 to {size - 1})")
        ids = cast("list[int]", raw)
        text = await _worked(visit, lambda: template.tokenizer.decode(ids, skip_special=False))
        await visit.reply.json({"prompt": text})

    async def _asked(self, visit: Visit, known: frozenset[str]) -> tuple[Json, Model, Template]:
        """The body, its model, and the model's template.

        Raises:
            ApiError: a field is wrong, or the model's tokenizer is not at hand.
        """
        parts = self._app.parts
        body = await visit.json(parts.job.sizes.max_body_bytes, parts.job.patience.client_s)
        if unknown := sorted(body.keys() - known):
            raise bad(unknown[0][:100], "unknown parameter")
        name = body.get("model")
        names = list(parts.pool.models())
        if name is None and len(names) == 1:
            name = names[0]
        if not isinstance(name, str):
            raise bad("model", "the name of a model is required")
        model = parts.pool.find(name)
        if visit.key:
            visit.key.allow("chat", model.name)
        template = parts.contexts.template(model.name)
        if template is None:
            raise ApiError(
                404,
                f"the tokenizer of `{model.name}` is not at hand: give its folder as "
                f"`models.{model.name}.tokenizer` of the gateway",
                param="model",
                code="tokenizer_not_found",
            )
        return body, model, template


async def _worked(visit: Visit, work: Callable[[], Any]) -> Any:
    """Short work at once, long work beside the loop."""
    length = visit.header(b"content-length")
    is_short = length.isdigit() and int(length) < _LONG
    return work() if is_short else await asyncio.to_thread(work)


def _ids(body: Json, template: Template) -> list[int]:
    prompt, messages = body.get("prompt"), body.get("messages")
    if (prompt is None) == (messages is None):
        raise bad("prompt", "give either `prompt` or `messages`")
    if messages is None:
        if not isinstance(prompt, str):
            raise bad("prompt", "a text is required")
        return _framed(template, prompt, body, is_usual=True)
    if not isinstance(messages, list) or not messages:
        raise bad("messages", "a list of at least one message is required")
    read = [from_openai(one, f"messages[{n}]") for n, one in enumerate(cast("list[Any]", messages))]
    raw_tools: Any = body.get("tools") or []
    if not isinstance(raw_tools, list):
        raise bad("tools", "a list is required")
    tools = [
        tool_from_openai(one, f"tools[{n}]") for n, one in enumerate(cast("list[Any]", raw_tools))
    ]
    goes_on = fields.flag(body, "continue_final_message")
    if not goes_on and body.get("add_generation_prompt") is False:
        text = template.dialogue(read, tools)
    else:
        text = template.prompt(read, tools, continue_final=goes_on)
    return _framed(template, text, body, is_usual=False)


def _framed(template: Template, text: str, body: Json, *, is_usual: bool) -> list[int]:
    """Ids of a text, with the special tokens that the checkpoint puts around texts or without."""
    wanted = body.get("add_special_tokens")
    is_framed = is_usual if wanted is None else fields.flag(body, "add_special_tokens")
    if is_framed:
        return list(template.framed_row(text).ids.tolist())
    return template.tokenizer.encode(text)
