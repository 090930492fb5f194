"""A form behind an OpenAI-compatible endpoint: the ids it makes of a dialogue, and its answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dialoop.chat.calls import CallReader
from dialoop.chat.message import to_openai, tool_to_openai
from dialoop.core.errors import UpstreamError, UserError
from dialoop.verify.folder import refuse_drift
from dialoop.verify.result import Compared

if TYPE_CHECKING:
    from dialoop.chat.template import Template
    from dialoop.train.endpoint import Endpoint
    from dialoop.verify.folder import Answered

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Served:
    """A form that is asked over HTTP."""

    endpoint: Endpoint
    template: Template
    """The first form's."""
    max_new_tokens: int

    @property
    def name(self) -> str:
        """The model's name there, and where."""
        return f"{self.endpoint.model} at {self.endpoint.url}"

    def compare(self, first: Answered, reference: str) -> Compared:
        """The same dialogue here.

        The server's own `/tokenize` tells the ids that it makes of the dialogue and its tools.
        Where it has none, their number must be the first form's, and the ids themselves, sent as
        a prompt, must be answered as the dialogue is.

        Raises:
            UserError: the server makes other ids of the dialogue.
            UpstreamError: it cannot be reached, or answers no chat completion.
        """
        dialogue = first.dialogue
        asked: Json = {"messages": [to_openai(m) for m in dialogue.messages]}
        if dialogue.tools:
            asked["tools"] = [tool_to_openai(tool) for tool in dialogue.tools]
        try:
            reply = self._ask(asked)
        except UserError as error:
            return Compared(
                dialogue=dialogue.name,
                answer="",
                is_same=False,
                first_nats=None,
                refused=str(error.args[0]),
            )
        try:
            spoken, count = reply["choices"][0], reply["usage"]["prompt_tokens"]
            text = _written(spoken["message"])
        except (KeyError, IndexError, TypeError) as error:
            raise UpstreamError(
                f"`{self.name}` answers no chat completion: {str(reply)[:200]}"
            ) from error
        wanted = self._read(first) if dialogue.tools else first.text
        names = (reference, self.name)
        if (ids := self._tokenized(asked)) is not None:
            refuse_drift(dialogue.name, names, (first.prompt_ids, ids), self.template)
        if count != len(first.prompt_ids):
            raise UserError(
                f"dialogue `{dialogue.name}`: `{self.name}` makes {count} tokens of it and "
                f"`{reference}` {len(first.prompt_ids)}; the server does not tell which",
                hint="serve with the checkpoint's own chat template and tokenizer",
            )
        if ids is None:
            self._refuse_other_prompt(first, text, wanted)
        return Compared(
            dialogue=dialogue.name,
            answer=text,
            is_same=text == wanted,
            first_nats=self._first_nats(first, spoken),
            differs="" if text == wanted else _parting(wanted, text),
        )

    def _ask(self, asked: Json) -> Json:
        """One answer, with log-probabilities where the server tells them."""
        body = asked | {"temperature": 0, "max_tokens": self.max_new_tokens}
        for told in ({"logprobs": True, "top_logprobs": 5}, {"logprobs": True}):
            try:
                return self.endpoint.post("chat/completions", body | told)
            except UserError as error:
                if "logprobs" not in str(error.args[0]):
                    raise
        return self.endpoint.post("chat/completions", body)

    def _tokenized(self, asked: Json) -> list[int] | None:
        """The ids, by the `/tokenize` that dialoop, vLLM and others have beside `/v1`."""
        beside = self.endpoint.model_copy(
            update={"url": self.endpoint.url.rstrip("/").removesuffix("/v1")}
        )
        try:
            return list(beside.post("tokenize", asked | {"add_generation_prompt": True})["tokens"])
        except (UserError, UpstreamError, KeyError, TypeError):
            return None

    def _read(self, first: Answered) -> str:
        """The first form's answer as a server tells it, calls taken out of its text."""
        syntax, tokenizer = self.template.call_syntax, self.template.tokenizer
        if syntax is None:
            return first.text
        shows = not tokenizer.special_ids.isdisjoint(tokenizer.encode(syntax.mark))
        reader = CallReader(syntax)
        parts = [
            reader.push(tokenizer.decode(first.answer_ids, skip_special=not shows)),
            reader.finish(),
        ]
        calls = [_call(call.name, json.dumps(call.arguments)) for _, more in parts for call in more]
        return "\n".join(["".join(text for text, _ in parts).strip(), *calls]).strip()

    def _refuse_other_prompt(self, first: Answered, text: str, wanted: str) -> None:
        """Ask with the ids themselves: equal prompts have equal greedy answers."""
        body = {"prompt": first.prompt_ids, "temperature": 0, "max_tokens": self.max_new_tokens}
        try:
            plain = str(self.endpoint.post("completions", body)["choices"][0]["text"]).strip()
        except UserError:  # no such route, or it takes no ids
            return
        if text != wanted and plain == first.text:
            raise UserError(
                f"dialogue `{first.dialogue.name}`: `{self.name}` answers the ids of the first "
                "form as that form does, and the dialogue otherwise: it sends as many ids, but "
                f"others ({_parting(wanted, text)})",
                hint="serve with the checkpoint's own chat template",
            )

    def _first_nats(self, first: Answered, spoken: Json) -> float | None:
        told = (spoken.get("logprobs") or {}).get("content") or []
        if not told:
            return None
        text = self.template.tokenizer.decode([first.answer_ids[0]], skip_special=False)
        items = [told[0], *told[0].get("top_logprobs", ())]
        found = next((item["logprob"] for item in items if item["token"] == text), None)
        if found is None:
            return None
        return abs(float(found) - float(first.logps[0, first.answer_ids[0]]))


def _written(message: Json) -> str:
    """What was said; of calls, their names and arguments."""
    asked = [c["function"] for c in message.get("tool_calls") or ()]
    calls = [_call(str(c["name"]), str(c["arguments"])) for c in asked]
    return "\n".join([str(message.get("content") or "").strip(), *calls]).strip()


def _call(name: str, arguments: str) -> str:
    """A call, its arguments spelt the same way whoever wrote them."""
    try:
        return f"{name} {json.dumps(json.loads(arguments), ensure_ascii=False, sort_keys=True)}"
    except ValueError:
        return f"{name} {arguments}"


def _parting(one: str, two: str) -> str:
    pairs = zip(one, two, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(two)))
    return f"answers part at letter {at}: {one[at : at + 20]!r} and {two[at : at + 20]!r}"
