"""A chat's answer told as a response: one object, or the events that build it up.

Events are numbered and come in OpenAI's order. Of output items only calls are open beside one
another, as their arguments may come mixed; they are closed in order at the end. A stream that was
cut ends with `response.failed`, and items that were open in it stay so: nothing says that they are
done. Source: OpenAI's API reference of 2026, streaming events; Open Responses of 2026-04.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import orjson

from dialoop.gateway import items
from dialoop.gateway.call import as_object
from dialoop.gateway.store.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dialoop.gateway.responses_ask import Asked
    from dialoop.serve.failure import ApiError

Json = dict[str, Any]

_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseForm:
    """One response.

    Args:
        asked: the request.
        before: items that were said before it.
        policy: what `truncation` tells where the request does not say it.
        put: keeps the response; None where it is not to be kept.
    """

    def __init__(
        self,
        asked: Asked,
        before: Sequence[Json],
        policy: str,
        put: Callable[[Json], Awaitable[bool]] | None,
    ) -> None:
        self.before: Sequence[Json] = before
        self.new: list[Json] = asked.new
        self.strategy: Literal["drop", "refuse"] | None = asked.strategy
        self._asked, self._put = asked, put
        self._number = 0
        self._output: list[Json] = []
        self._open: Json | None = None
        """The reasoning or message that is being written."""
        self._calls: dict[int, Json] = {}
        self._finish: str | None = None
        self._resource: Json = asked.told | {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": asked.chat["model"],
            "output": [],
            "truncation": asked.told["truncation"] or policy,
            "usage": None,
        }

    @property
    def reply(self) -> list[Json]:
        """Items of the answer, as far as it was told."""
        return self._output

    async def keep(self) -> bool:
        """Keep the response where that was asked for; false where that is still to be done."""
        return await self._put(self._resource) if self._put else True

    def whole(self, found: Json) -> bytes:
        """The response's object."""
        choice = found["choices"][0]
        self._learn(found)
        self._finish = choice.get("finish_reason")
        message = dict(choice["message"])
        self._output = items.from_answer(message)
        if self._asked.has_logprobs:
            self._tell_logprobs(choice)
        self._close(None)
        return orjson.dumps(self._resource)

    def begin(self) -> bytes:
        """How the stream begins."""
        return self._state("response.created") + self._state("response.in_progress")

    def event(self, event: Json) -> bytes:
        """What a chunk of the chat is told in."""
        self._learn(event)
        told: list[bytes] = []
        for choice in event.get("choices") or ():
            self._finish = choice.get("finish_reason") or self._finish
            delta = as_object(choice.get("delta"))
            if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                told += self._more("reasoning_text", thought)
            if text := delta.get("content"):
                told += self._more("output_text", text, _logprobs(choice))
            if refusal := delta.get("refusal"):
                told += self._more("refusal", refusal)
            for call in delta.get("tool_calls") or ():
                told += self._call(call)
        return b"".join(told)

    def end(self, cut: ApiError | None) -> bytes:
        """How the stream ends."""
        told: list[bytes] = []
        if cut is None:
            if not self._output:
                told += self._more("output_text", "")
            told += self._done_open()
            told += [self._done(item) for _, item in sorted(self._calls.items())]
        self._close(cut)
        return b"".join(told) + self._state(f"response.{self._resource['status']}")

    def _learn(self, event: Json) -> None:
        self._resource["model"] = event.get("model") or self._resource["model"]
        if usage := as_object(event.get("usage")):
            self._resource["usage"] = _usage(usage)

    def _close(self, cut: ApiError | None) -> None:
        """Write how it ended into the response."""
        reason = _REASONS.get(self._finish or "")
        if cut is not None:
            error = {"code": "server_error", "message": f"{cut} ({cut.code})"}
            self._resource |= {"status": "failed", "error": error}
        elif reason:
            details = {"reason": reason}
            self._resource |= {"status": "incomplete", "incomplete_details": details}
            if self._output[-1]["type"] != "reasoning":
                self._output[-1]["status"] = "incomplete"
        else:
            self._resource |= {"status": "completed", "completed_at": int(time.time())}
        if cut is not None:
            for item in self._output:
                if item.get("status") == "in_progress":
                    item["status"] = "incomplete"
        self._resource["output"] = self._output

    def _tell_logprobs(self, choice: Json) -> None:
        for item in self._output:
            if item["type"] == "message":
                item["content"][0]["logprobs"] = _logprobs(choice)

    def _more(self, kind: str, text: str, logprobs: Sequence[Json] = ()) -> list[bytes]:
        """More of the text that is being written, or the beginning of another."""
        told: list[bytes] = []
        item_type = "reasoning" if kind == "reasoning_text" else "message"
        item = self._open
        if item is None or item["type"] != item_type:
            told += self._done_open()
            item = self._open = _new_item(item_type)
            told.append(self._begin(item))
        content: list[Json] = item["content"]
        if not content or content[-1]["type"] != kind:
            if content:
                told += self._done_part(item)
            content.append(_new_part(kind))
            told.append(self._tell("response.content_part.added", item, part=content[-1]))
        part = content[-1]
        field = "refusal" if kind == "refusal" else "text"
        part[field] += text
        more: Json = {"delta": text}
        if kind == "output_text":
            part["logprobs"] += logprobs
            more["logprobs"] = list(logprobs)
        if text:
            told.append(self._tell(f"response.{kind}.delta", item, **more))
        return told

    def _call(self, piece: Json) -> list[bytes]:
        told: list[bytes] = []
        number = piece.get("index", len(self._calls))
        function = as_object(piece.get("function"))
        item = self._calls.get(number)
        if item is None:
            told += self._done_open()
            item = {"id": new_id("fc"), "type": "function_call", "status": "in_progress"}
            item |= {"call_id": piece.get("id") or new_id("call"), "arguments": ""}
            item["name"] = function.get("name") or ""
            self._calls[number] = item
            told.append(self._begin(item))
        if arguments := function.get("arguments"):
            item["arguments"] += arguments
            name = "response.function_call_arguments.delta"
            told.append(self._tell(name, item, is_part=False, delta=arguments))
        return told

    def _begin(self, item: Json) -> bytes:
        self._output.append(item)
        event = {"output_index": len(self._output) - 1, "item": item}
        return self._frame("response.output_item.added", event)

    def _done_open(self) -> list[bytes]:
        item, self._open = self._open, None
        if item is None:
            return []
        return [*self._done_part(item), self._done(item)]

    def _done_part(self, item: Json) -> list[bytes]:
        part = item["content"][-1]
        kind = part["type"]
        field = "refusal" if kind == "refusal" else "text"
        more: Json = {field: part[field]}
        if kind == "output_text":
            more["logprobs"] = part["logprobs"]
        return [
            self._tell(f"response.{kind}.done", item, **more),
            self._tell("response.content_part.done", item, part=part),
        ]

    def _done(self, item: Json) -> bytes:
        """An item is as long as it gets."""
        told = b""
        reason = _REASONS.get(self._finish or "")
        is_last = item is self._output[-1]
        status: Literal["completed", "incomplete"]
        status = "incomplete" if reason and is_last else "completed"
        if item["type"] != "reasoning":
            item["status"] = status
        if item["type"] == "function_call":
            more = {"arguments": item["arguments"], "name": item["name"]}
            name = "response.function_call_arguments.done"
            told = self._tell(name, item, is_part=False, **more)
        event = {"output_index": self._place(item), "item": item}
        return told + self._frame("response.output_item.done", event)

    def _tell(self, name: str, item: Json, /, *, is_part: bool = True, **more: Any) -> bytes:
        event: Json = {"item_id": item["id"], "output_index": self._place(item)}
        if is_part:
            event["content_index"] = len(item["content"]) - 1
        return self._frame(name, event | more)

    def _place(self, item: Json) -> int:
        return next(n for n, one in enumerate(self._output) if one is item)

    def _state(self, name: str) -> bytes:
        return self._frame(name, {"response": self._resource})

    def _frame(self, name: str, event: Json) -> bytes:
        data = orjson.dumps({"type": name, "sequence_number": self._number} | event)
        self._number += 1
        return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def _new_item(kind: str) -> Json:
    if kind == "reasoning":
        return {"id": new_id("rs"), "type": kind, "summary": [], "content": []}
    head = {"id": new_id("msg"), "type": kind, "status": "in_progress", "role": "assistant"}
    return head | {"content": []}


def _new_part(kind: str) -> Json:
    if kind == "output_text":
        return items.output_text("")
    return {"type": kind, "refusal" if kind == "refusal" else "text": ""}


def _usage(usage: Json) -> Json:
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = as_object(usage.get("prompt_tokens_details")).get("cached_tokens") or 0
    thought = as_object(usage.get("completion_tokens_details")).get("reasoning_tokens") or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": prompt + completion,
    }


def _logprobs(choice: Json) -> list[Json]:
    """A choice's log-probabilities as responses have them."""
    told: list[Json] = as_object(choice.get("logprobs")).get("content") or []
    return [
        _logprob(one) | {"top_logprobs": [_logprob(top) for top in one.get("top_logprobs") or ()]}
        for one in told
    ]


def _logprob(one: Json) -> Json:
    token = one.get("token", "")
    spelled = one.get("bytes")
    read = list(token.encode("utf-8", "replace")) if spelled is None else spelled
    return {"token": token, "logprob": one.get("logprob", 0.0), "bytes": read}
