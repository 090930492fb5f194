"""Chats in a stored conversation: what was said before goes in front, what is said now behind.

The prompt is: system messages that are stored, those of the request, the stored items, the
request's other messages. A system message of the request replaces none, holds for the request alone
and is not kept; one that shall last is an item of the conversation.
After the answer the request's messages and what was delivered of the answer are appended together:
a whole answer as `completed`; one that was cut, or whose client went away, as far as it was written
to the client, as `incomplete` with the reason. Where no answer began the user's message is kept as
`incomplete` and is no part of later prompts: whoever wants an answer sends it again. A request that
is refused (status 4xx) leaves nothing.
No connection to the database is held while an engine works. One that does not answer costs its
time-out at most: the answer still comes, with the header `x-dialoop-history: lost`. What could not
be written is tried again (`history`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import UpstreamError
from dialoop.gateway import ask, items
from dialoop.gateway.call import as_object
from dialoop.gateway.context.plan import Dialogue
from dialoop.gateway.gathered import Gathered
from dialoop.gateway.history import Write
from dialoop.serve.failure import ApiError, bad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.gateway.call import Call, Json
    from dialoop.gateway.form import Form
    from dialoop.gateway.history import History, Recent
    from dialoop.gateway.parts import Parts
    from dialoop.gateway.visit import Visit

log = logging.getLogger(__name__)

_LOST = (b"x-dialoop-history", b"lost")
_MAX_PINS, _MAX_PIN_CHARS = 64, 2000
REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why an answer is incomplete, by the reason for which an engine ended it."""


@dataclass(slots=True)
class Turn:
    """What one request adds to a conversation."""

    tenant: str
    conversation_id: str
    history: History
    new: list[Json]
    """Items of the request."""
    gathered: Gathered = field(default_factory=Gathered)
    """What was delivered of the answer."""
    is_over: bool = False
    """Whether it was kept, or is not to be."""
    is_lost: bool = False
    """Whether what was said before could not be read."""

    async def keep(self, reply: Sequence[Json]) -> bool:
        """Append the request and its answer; false where that is still to be done."""
        self.is_over = True
        write = self._write([*self.new, *reply])
        if self.is_lost:  # the database has cost its time-out already
            self.history.later(write)
            return False
        return await self.history.write(write)

    def leave(self, reason: str) -> None:
        """The request ended early: keep what there is, behind its back."""
        if self.is_over:
            return
        self.is_over = True
        answer = items.from_answer(self.gathered.message()) if not self.gathered.is_empty else []
        said = [item for item in answer if not _is_silent(item)]
        if said:
            found = [*self.new, *items.cut(said, reason)]
        else:
            found = items.unanswered(self.new, reason)
        self.history.later(self._write(found))

    def _write(self, found: list[Json]) -> Write:
        place = (self.tenant, self.conversation_id)
        conversations = self.history.conversations
        return Write(partial(conversations.append, *place, found), place, found)


def conversation_id(body: Json) -> str | None:
    """The conversation that a request belongs to.

    Raises:
        ApiError: the field is no id.
    """
    value = body.get("conversation")
    if value is None:
        return None
    found = value if isinstance(value, str) else as_object(value).get("id")
    if not isinstance(found, str) or not found:
        raise bad("conversation", "the id of a conversation, or an object with it, is required")
    return found


async def prepare(
    visit: Visit, call: Call, body: Json, parts: Parts, form: Form | None = None
) -> tuple[Json, Turn | None]:
    """Put what was said before into a chat, as far as it fits into the model's window.

    Args:
        visit: whose request it is; learns headers.
        call: gets the messages to send.
        body: the request.
        parts: what the gateway works with.
        form: of a response, which has items rather than messages.

    Returns:
        The request with all its messages, and its turn where it is of a conversation.

    Raises:
        ApiError: there is no such conversation, or what must be sent does not fit.
    """
    pins = _pins(body)
    place = conversation_id(body)
    before = list(form.before) if form else []
    turn = None
    if place is not None:
        if call.num_choices > 1:
            raise bad("n", "one answer only within a `conversation`")
        new = form.new if form else items.from_messages(_said(body["messages"]))
        turn = Turn(visit.tenant, place, parts.stores.history, new)
        visit.notes["conversation"] = place
        if found := await _recent(visit, place, parts):
            before, pins = found.items, [*found.pins, *pins]
        turn.is_lost = found is None
    messages = _joined(items.to_messages(before), body["messages"])
    body = body | {"messages": await _planned(visit, call, messages, pins, parts, form)}
    call.body["messages"] = body["messages"]
    return body, turn


async def explain(visit: Visit, call: Call, body: Json, parts: Parts) -> Json:
    """The plan of a chat, for people to look at.

    Raises:
        ApiError: the window is not known, there is no such conversation, or it does not fit.
    """
    manager = parts.contexts.find(call.model)
    if manager is None:
        raise bad("model", "its window is not known: configure its `tokenizer`")
    pins = _pins(body)
    before: list[Json] = []
    if (place := conversation_id(body)) and (found := await _recent(visit, place, parts)):
        before, pins = found.items, [*found.pins, *pins]
    messages = _joined(items.to_messages(before), body["messages"])
    tools: list[Json] = call.body.get("tools") or []
    asked = Dialogue(messages, tools, pins, ask.asked_tokens(call.body) or None)
    return (await manager.plan(asked)).to_json()


async def _recent(visit: Visit, place: str, parts: Parts) -> Recent | None:
    """What was said before; None, and told to the client, where the database does not answer."""
    most = parts.job.sizes.max_messages
    try:
        return await parts.stores.history.recent(visit.tenant, place, most)
    except UpstreamError as error:
        log.warning("%s: the conversation cannot be read: %s", visit.id, error)
        visit.notes["history"] = "lost"
        visit.reply.more.append(_LOST)
        return None


async def _planned(
    visit: Visit,
    call: Call,
    messages: list[Json],
    pins: Sequence[str],
    parts: Parts,
    form: Form | None,
) -> list[Json]:
    """The messages that are sent of a dialogue."""
    manager = parts.contexts.find(call.model, form.strategy if form else None)
    if manager is None:
        if pins:
            raise bad("pins", "the window of this model is not known: configure `tokenizer`")
        return messages
    tools: list[Json] = call.body.get("tools") or []
    max_tokens = ask.asked_tokens(call.body) or None
    if not tools and not pins and manager.holds(messages, max_tokens):
        return messages
    dialogue = Dialogue(messages, tools, pins, max_tokens)
    plan = await manager.plan(dialogue)
    visit.reply.more.append((b"x-dialoop-context", plan.header.encode()))
    return list(plan.messages)


def reason_of(error: BaseException) -> str:
    """Why an answer is cut, in a word."""
    if isinstance(error, ApiError):
        return error.code or "engine_failed"
    return "client_gone" if not isinstance(error, Exception) else "failed"


def _joined(before: list[Json], messages: list[Json]) -> list[Json]:
    """System messages first, what was said before in front of the rest."""
    if not before:
        return messages
    place = next((n for n, one in enumerate(before) if one["role"] != "system"), len(before))
    lasting = [one for one in messages if one["role"] in items.SYSTEM]
    return [*before[:place], *lasting, *before[place:], *_said(messages)]


def _said(messages: Sequence[Json]) -> list[Json]:
    return [one for one in messages if one["role"] not in items.SYSTEM]


def _is_silent(item: Json) -> bool:
    """Whether an item of a cut answer shows nothing."""
    if item["type"] != "message":
        return False
    return not any(part.get("text") or part.get("refusal") for part in item["content"])


def _pins(body: Json) -> list[str]:
    return read_pins(body["pins"]) if body.get("pins") is not None else []


def read_pins(raw: Any) -> list[str]:
    """Facts that are always sent.

    Raises:
        ApiError: no texts, too many, or too long.
    """
    if not isinstance(raw, list) or not all(isinstance(pin, str) and pin for pin in raw):  # pyright: ignore[reportUnknownVariableType]
        raise bad("pins", "a list of texts is required, none of them empty")
    pins: list[str] = raw  # pyright: ignore[reportUnknownVariableType]
    if len(pins) > _MAX_PINS or any(len(pin) > _MAX_PIN_CHARS for pin in pins):
        raise bad("pins", f"at most {_MAX_PINS} texts of at most {_MAX_PIN_CHARS} characters")
    return pins
