"""OpenAI's responses: whole ones, and the events of streams."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dialoop.chat.message import ToolCall
    from dialoop.chat.tokenizer import Tokenizer
    from dialoop.engines import TokenLogprob

Json = dict[str, Any]
Kind = Literal["chat", "text"]
Told = tuple["tuple[int, TokenLogprob]", ...]
"""Tokens and their log-probabilities."""


@dataclass(slots=True)
class Choice:
    """One answer, as far as it has come."""

    text: str
    calls: list[tuple[str, ToolCall]] = field(default_factory=list["tuple[str, ToolCall]"])
    """With the ids that results will name."""
    logprobs: list[tuple[int, TokenLogprob]] | None = None
    """None where they were not asked for."""
    finish: str = ""


@dataclass(frozen=True, slots=True)
class Writer:
    """Responses of one request."""

    id: str
    kind: Kind
    model: str
    created: int
    tokenizer: Tokenizer

    @classmethod
    def of(cls, kind: Kind, name: str, model: str, tokenizer: Tokenizer) -> Writer:
        """A writer for a request that came now."""
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        return cls(f"{prefix}-{name}", kind, model, int(time.time()), tokenizer)

    def whole(self, choices: list[Choice], usage: Json) -> Json:
        """The response without a stream."""
        name = "text_completion" if self.kind == "text" else "chat.completion"
        return self._head(name) | {
            "choices": [self._whole(n, choice) for n, choice in enumerate(choices)],
            "usage": usage,
        }

    def _whole(self, index: int, choice: Choice) -> Json:
        told = None if choice.logprobs is None else self._logprobs(tuple(choice.logprobs))
        end: Json = {"logprobs": told, "finish_reason": choice.finish}
        if self.kind == "text":
            return {"index": index, "text": choice.text} | end
        content = choice.text if choice.text or not choice.calls else None
        said: Json = {"role": "assistant", "content": content, "refusal": None}
        if choice.calls:
            said["tool_calls"] = [_call(name, call) for name, call in choice.calls]
        return {"index": index, "message": said} | end

    def opening(self, index: int, echo: str) -> Json:
        """The first event of a choice."""
        if self.kind == "text":
            return self.text_chunk(index, echo, ())
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def text_chunk(self, index: int, text: str, told: Told) -> Json:
        """An event with more text."""
        logprobs = self._logprobs(told) if told else None
        delta: Json = {"text": text} if self.kind == "text" else {"content": text}
        return self._chunk(index, delta, None, logprobs)

    def call_chunk(self, index: int, number: int, name: str, call: ToolCall) -> Json:
        """An event with a whole call, the answer's `number`-th."""
        return self._chunk(index, {"tool_calls": [{"index": number} | _call(name, call)]}, None)

    def end_chunk(self, index: int, finish: str) -> Json:
        """The last event of a choice."""
        return self._chunk(index, {"text": ""} if self.kind == "text" else {}, finish)

    def usage_chunk(self, usage: Json) -> Json:
        """The event that counts, last before the end."""
        kind = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return self._head(kind) | {"choices": [], "usage": usage}

    def _chunk(
        self, index: int, delta: Json, finish: str | None, logprobs: Json | None = None
    ) -> Json:
        end: Json = {"logprobs": logprobs, "finish_reason": finish}
        if self.kind == "text":
            return self._head("text_completion") | {"choices": [{"index": index} | delta | end]}
        choice: Json = {"index": index, "delta": delta} | end
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _logprobs(self, told: Told) -> Json:
        if self.kind == "chat":
            listed = [
                self._token(token, one.logprob)
                | {"top_logprobs": [self._token(other, value) for other, value in one.top]}
                for token, one in told
            ]
            return {"content": listed, "refusal": None}
        return {
            "tokens": [self._text(token) for token, _ in told],
            "token_logprobs": [one.logprob for _, one in told],
            "top_logprobs": [
                {self._text(other): value for other, value in (*one.top, (token, one.logprob))}
                for token, one in told
            ],
            "text_offset": self._offsets(told),
        }

    def _offsets(self, told: Told) -> list[int]:
        """Where each token begins in the text of this event or response."""
        out: list[int] = []
        place = 0
        for token, _ in told:
            out.append(place)
            place += len(self._text(token))
        return out

    def _token(self, token: int, logprob: float) -> Json:
        text = self._text(token)
        # part of a character has no text of its own
        is_whole = "\N{REPLACEMENT CHARACTER}" not in text
        return {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode()) if is_whole else None,
        }

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special=False)

    def _head(self, object_name: str) -> Json:
        head: Json = {"id": self.id, "object": object_name}
        return head | {"created": self.created, "model": self.model}


def _call(name: str, call: ToolCall) -> Json:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {
        "id": name,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def usage(num_prompt: int, num_new: int) -> Json:
    """Token counts as OpenAI spells them."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_new,
        "total_tokens": num_prompt + num_new,
    }
