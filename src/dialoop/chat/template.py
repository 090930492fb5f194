"""The checkpoint's own chat template: prompts to serve, and rows of ids and loss weights to train.

Serving and training render by the same functions. A row is made of what serving would do: the ids
of a prompt, then the ids of the answer up to its end token, then the ids by which the next prompt
goes on. Where the next prompt does not begin with the very ids of the row (a template that takes
old reasoning out, a tokenizer that joins characters across the border), a new row begins there, so
that every answer is learned after exactly the ids that serving sends before it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dialoop.chat import calls, jinja, templates
from dialoop.chat.backends import read_json
from dialoop.chat.message import Message, Tool, message, to_openai, tool_to_openai
from dialoop.chat.tokenizer import Tokenizer, load_tokenizer
from dialoop.chat.tool_formats import json_call
from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dialoop.chat.calls import CallSyntax

Json = dict[str, Any]

CUT = "DIALOOP_CUT_HERE "
PROBE = "731904"


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to train on, with T tokens."""

    ids: np.ndarray
    """(T,) int32."""
    weights: np.ndarray
    """(T,) float32: the loss weight of predicting `ids[i]` from the ids before it; 0 is no loss."""
    second: int = 0
    """Where a second text begins, for models that tell two texts apart; 0 where there is one."""
    tail: int = 0
    """Tokens at the end that close the text and stay when it is cut."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Template:
    """How one checkpoint writes dialogues; made by `from_folder`."""

    tokenizer: Tokenizer
    name: str
    """`checkpoint`, or `built-in chatml` and the like when the checkpoint carries none."""
    source: str
    """Jinja for dialogues."""
    tool_source: str
    """Jinja for dialogues with tools; most often the same."""

    @classmethod
    def from_folder(
        cls, folder: Path, *, tokenizer: Tokenizer | None = None, built_in: str | None = None
    ) -> Template:
        """Read a checkpoint's template, or choose a built-in one.

        Args:
            folder: the checkpoint.
            tokenizer: its tokenizer, if it is already loaded.
            built_in: take this built-in template whatever the checkpoint carries.

        Raises:
            UserError: damaged files, or no built-in template of that name.
        """
        tokenizer = tokenizer or load_tokenizer(folder)
        sources = {} if built_in else _sources(folder)
        if "default" in sources:
            usual = sources["default"]
            return cls(tokenizer, "checkpoint", usual, sources.get("tool_use", usual))
        chosen = _built_in(folder, tokenizer, built_in)
        return cls(tokenizer, f"built-in {chosen.name}", chosen.source, chosen.source)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides the ids of a dialogue."""
        parts = [self.tokenizer.digest, self.source, self.tool_source, json_call.LISTING]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template itself writes tools and calls; else `json_call` spells them."""
        names = jinja.free_names(self.tool_source)
        return "tools" in names and "tool_calls" in self.tool_source

    @cached_property
    def call_syntax(self) -> CallSyntax | None:
        """How answers call tools; None where the template's way is not known here."""
        if not self.knows_tools:
            return calls.TAGS
        tool = Tool(calls.PROBE.name, "", {"type": "object", "properties": {"place": {}}})
        turns = [message("user", "hi"), Message("assistant", tool_calls=(calls.PROBE,))]
        before = self._render(turns[:1], (tool,), True)
        whole = self._render(turns, (tool,), False)
        if not whole.startswith(before):
            return None
        end = (
            "" if self.end_id is None else self.tokenizer.decode([self.end_id], skip_special=False)
        )
        return calls.find_syntax(whole[len(before) :], end)

    @cached_property
    def end_id(self) -> int | None:
        """The token that the template writes after an answer; None when it writes none."""
        turns = [message("user", "hi"), message("assistant", PROBE)]
        _, found, after = self._render(turns, (), False).rpartition(PROBE)
        if not found:
            return None
        ends = self.tokenizer.special_ids | set(self.tokenizer.added.values())
        return next((n for n in self.tokenizer.encode_after(after) if n in ends), None)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's own first, then the checkpoint's."""
        own = () if self.end_id is None else (self.end_id,)
        return tuple(dict.fromkeys((*own, *self.tokenizer.eos_ids)))

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        continue_final: bool = False,
    ) -> str:
        """The text to generate an answer from.

        Args:
            messages: the dialogue so far.
            tools: functions that the model may call.
            continue_final: go on writing the last message, which is the assistant's, instead of
                beginning an answer.

        Raises:
            UserError: no messages, or the template refuses them.
        """
        if not messages:
            raise UserError("messages: a dialogue needs at least one message")
        if not continue_final:
            return self._render(messages, tools, True)
        *before, last = messages
        if last.role != "assistant" or not last.text.strip():
            raise UserError(
                "messages: only an assistant message with text can be continued",
                hint="end the messages with the beginning of the answer",
            )
        return self._render_open([*before, last], tools)

    def dialogue(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """The text of a dialogue that no answer is asked for.

        Raises:
            UserError: the template refuses the messages.
        """
        return self._render(messages, tools, False)

    def prompt_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        continue_final: bool = False,
    ) -> list[int]:
        """The ids of `prompt`, as serving sends them."""
        return self.tokenizer.encode(self.prompt(messages, tools, continue_final=continue_final))

    def train_rows(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, weight: float = 1.0
    ) -> list[Row]:
        """Rows whose loss falls on the assistant's tokens and their end tokens, and on no other.

        Most often one row; more where the template rewrites what came before. No row when no
        assistant message has a weight above zero.

        Args:
            messages: the dialogue, with its answers.
            tools: functions that the assistant may call.
            weight: loss weight of assistant messages that carry none.

        Raises:
            UserError: the template's text for a turn does not go on from its own prompt, or writes
                no end token; the message says which turn.
        """
        rows: list[Row] = []
        ids: list[int] = []
        weights: list[float] = []
        encoded: dict[str, list[int]] = {}
        for turn, item in enumerate(messages):
            if item.role != "assistant":
                continue
            prompt, answer = self._turn(messages, tools, turn, encoded)
            if prompt[: len(ids)] != ids:
                rows += _row(ids, weights)
                ids, weights = [], []
            weights += [0.0] * (len(prompt) - len(ids))
            share = weight if item.weight is None else item.weight
            weights += [share] * len(answer)
            ids = prompt + answer
        return rows + _row(ids, weights)

    def text_row(self, text: str) -> Row:
        """A row of plain text for pre-training: every token but the first counts, eos ends it."""
        tokenizer = self.tokenizer
        bos = tokenizer.token_id(tokenizer.bos_token or "") if tokenizer.add_bos else None
        ids = [] if bos is None else [bos]
        ids += tokenizer.encode(text)
        ids += tokenizer.eos_ids[:1]
        weights = np.ones(len(ids), np.float32)
        weights[:1] = 0
        return Row(np.asarray(ids, np.int32), weights)

    def framed_row(self, first: str, second: str | None = None) -> Row:
        """A row of a text, or of two, that is read whole: nothing in it is predicted.

        Args:
            first: a text; a query where there are two.
            second: what stands behind it, such as a passage.
        """
        framed = self.tokenizer.frame(first, second)
        return _read_row(framed.ids, framed.second, framed.tail)

    def dialogue_row(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Row:
        """A row of a whole dialogue, with its last answer, that is read and not predicted.

        Raises:
            UserError: the template refuses the messages.
        """
        text = self._render(messages, tools, False)
        _, _, after = text.rpartition(messages[-1].text.strip())
        return _read_row(self.tokenizer.encode(text), 0, len(self.tokenizer.encode_after(after)))

    def choice_row(self, messages: Sequence[Message], opening: str, choices: Sequence[str]) -> Row:
        """A row of a prompt whose answer begins with one of several words.

        The first token of each choice stands behind the prompt with weight 1; what is meant is how
        likely each of them is right behind the prompt.

        Args:
            messages: the dialogue, ending with the user.
            opening: text that begins the answer, before the choice.
            choices: words that differ in their first token.

        Raises:
            UserError: two choices begin with the same token.
        """
        prompt = self.prompt(messages) + opening
        first = [self.tokenizer.encode_after(word)[0] for word in choices]
        if len(set(first)) < len(first):
            raise UserError(
                f"the words {' and '.join(choices)} begin with the same token of this model",
                hint="choose other words",
            )
        _, _, after = prompt.rpartition(messages[-1].text.strip())
        ids = self.tokenizer.encode(prompt)
        row = _read_row(ids + first, 0, len(self.tokenizer.encode_after(after)) + len(first))
        row.weights[len(ids) :] = 1
        return row

    def verify(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> None:
        """Check that the answers, and each of them whole, are what a dialogue's rows train.

        Raises:
            UserError: an assistant's text is not in the targets of its rows.
        """
        rows = self.train_rows(messages, tools)
        learned = [text for row in rows for text, share in self.spans(row) if share > 0]
        for turn, item in enumerate(messages):
            if item.role != "assistant" or item.weight == 0:
                continue
            if not learned or item.text.strip() not in learned[0]:
                raise UserError(
                    f"messages[{turn}]: the chat template changes the text of this answer",
                    hint="look at it with `dialoop data inspect`",
                )
            learned = learned[1:]

    def spans(self, row: Row) -> list[tuple[str, float]]:
        """The text of a row, cut where the loss weight changes; for previews."""
        cuts = np.flatnonzero(np.diff(row.weights)) + 1
        return [
            (self.tokenizer.decode(ids.tolist(), skip_special=False), float(share[0]))
            for ids, share in zip(np.split(row.ids, cuts), np.split(row.weights, cuts), strict=True)
            if len(ids)
        ]

    def _turn(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        turn: int,
        encoded: dict[str, list[int]],
    ) -> tuple[list[int], list[int]]:
        """Ids of the prompt before an answer, and of the answer with its end token."""
        before = self._render(messages[:turn], tools, True)
        after = self._render(messages[: turn + 1], tools, False)
        if not after.startswith(before):
            raise UserError(
                f"messages[{turn}]: the chat template ({self.name}) writes this answer differently "
                f"from the prompt that asks for it (prompt ends {before[-40:]!r})",
                hint="give another template; `dialoop data inspect` shows the text",
            )
        prompt = self._encode(before, encoded)
        whole = self._encode(after, encoded)
        if whole[: len(prompt)] == prompt:
            answer = whole[len(prompt) :]
        else:
            answer = self.tokenizer.encode_after(after[len(before) :])
        end = self._end(answer)
        if end is None:
            raise UserError(
                f"messages[{turn}]: the chat template ({self.name}) writes no end token after this "
                "answer, so that the model would not learn to stop",
                hint="name the template's end token as eos_token in tokenizer_config.json, or give "
                "another template",
            )
        return prompt, answer[: end + 1]

    @cached_property
    def cuts(self) -> re.Pattern[str] | None:
        """Where text may be cut and encoded in pieces; None when this tokenizer looks across."""
        if self.end_id is None:
            return None
        end = self.tokenizer.decode([self.end_id], skip_special=False)
        encode = self.tokenizer.encode
        for before, after in (("x", "x"), (" x\n", "\n x"), ("x ", " x"), ("\u4e2d", "\u4e2d")):
            if encode(before + end + after) != encode(before + end) + encode(after):
                return None
        return re.compile(f"(?<={re.escape(end)})")

    def _encode(self, text: str, encoded: dict[str, list[int]]) -> list[int]:
        """The ids of a text; the turns that earlier texts of this dialogue held are known."""
        pieces = self.cuts.split(text) if self.cuts else [text]
        ids: list[int] = []
        for piece in pieces:
            if piece not in encoded:
                encoded[piece] = self.tokenizer.encode(piece)
            ids += encoded[piece]
        return ids

    def _end(self, answer: list[int]) -> int | None:
        """Place of the first end token after the last word of an answer."""
        end = None
        for place in range(len(answer) - 1, -1, -1):
            if answer[place] in self.stop_ids:
                end = place
            elif self.tokenizer.decode(answer[place : place + 1], skip_special=False).strip():
                break
        return end

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool], ask: bool) -> str:
        with_tools = bool(tools) or any(m.tool_calls or m.role == "tool" for m in messages)
        if with_tools and not self.knows_tools:
            messages, tools = json_call.spell(messages, tools), ()
        return jinja.render(
            self.tool_source if tools else self.source,
            messages=[_spelt(item) for item in messages],
            tools=[tool_to_openai(tool) for tool in tools] or None,
            documents=None,
            add_generation_prompt=ask,
            **self.tokenizer.special_tokens,
        )

    def _render_open(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        """The dialogue cut off at the end of its last text, ready to be gone on with."""
        *before, last = messages
        whole = self._render([*before, message("assistant", last.text + CUT)], tools, False)
        place = whole.rfind(CUT.strip())
        if place < 0:
            raise UserError("messages: the chat template leaves out the last message")
        text = whole[:place]
        return text if whole.startswith(CUT, place) else text.rstrip()


def _row(ids: list[int], weights: list[float]) -> list[Row]:
    if not any(weights):
        return []
    return [Row(np.asarray(ids, np.int32), np.asarray(weights, np.float32))]


def _read_row(ids: list[int], second: int, tail: int) -> Row:
    return Row(np.asarray(ids, np.int32), np.zeros(len(ids), np.float32), second, tail)


def _spelt(item: Message) -> Json:
    """A message as templates read it: OpenAI's spelling with the arguments as objects."""
    out = to_openai(item)
    out.pop("weight", None)
    for call, spelt in zip(item.tool_calls, out.get("tool_calls", ()), strict=True):
        spelt["function"]["arguments"] = call.arguments
    return out


def _sources(folder: Path) -> dict[str, str]:
    """The checkpoint's templates by name; `default` is the usual one."""
    found: dict[str, str] = {}
    listed: Any = read_json(folder / "tokenizer_config.json").get("chat_template")
    listed = listed or read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(listed, str):
        found["default"] = listed
    elif isinstance(listed, list):
        found |= {item["name"]: item["template"] for item in cast("list[Json]", listed)}
    elif isinstance(listed, dict):
        found |= cast("dict[str, str]", listed)
    if (file := folder / "chat_template.jinja").exists():
        found["default"] = file.read_text(encoding="utf-8")
    for file in sorted(folder.glob("additional_chat_templates/*.jinja")):
        found[file.stem] = file.read_text(encoding="utf-8")
    return found


def _built_in(folder: Path, tokenizer: Tokenizer, name: str | None) -> templates.BuiltIn:
    known = templates.built_ins()
    if name is not None and name not in known:
        raise UserError(
            f"no built-in chat template `{name}`", hint=f"use one of {', '.join(known)}"
        )
    if name is not None:
        return known[name]
    model_type = str(read_json(folder / "config.json").get("model_type", ""))
    return templates.choose(model_type, frozenset(tokenizer.added))
