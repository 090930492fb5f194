"""How one answer is told to its client, and what is kept of what was told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from dialoop.gateway import dialogue, items
from dialoop.gateway.sse import DONE, frame
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from dialoop.gateway.call import Json
    from dialoop.gateway.dialogue import Turn
    from dialoop.gateway.form import Form
    from dialoop.gateway.gathered import Gathered
    from dialoop.gateway.visit import Visit

_END = frame(DONE)
_LATE = (b"x-dialoop-history", b"late")


class Telling:
    """One answer on its last way.

    Args:
        form: how it is told; as completions are, unless given.
        turn: of the conversation that it belongs to.
    """

    __slots__ = ("_form", "_turn", "gathered")

    def __init__(self, form: Form | None, turn: Turn | None) -> None:
        self._form, self._turn = form, turn
        self.gathered = turn.gathered if turn else None
        """What was delivered, where anything wants to know."""

    def gather(self, wanted: Gathered | None) -> None:
        """Collect what is delivered from now on."""
        self.gathered = self.gathered or wanted

    async def whole(self, visit: Visit, data: bytes, found: Json | None = None) -> bytes:
        """The body of a whole answer; it is kept before the client has it.

        Args:
            visit: learns a header where the answer could not be kept yet.
            data: the completion.
            found: the same, where it was read already.
        """
        if not self._form and not self._turn:
            return data
        completion: Json = found or orjson.loads(data)
        if self._form:
            data = self._form.whole(completion)
        is_kept = await self._keep(completion["choices"][0])
        if not is_kept and "history" not in visit.notes:
            visit.notes["history"] = "late"
            visit.reply.more.append(_LATE)
        return data

    def begin(self) -> bytes:
        """How a stream begins."""
        return self._form.begin() if self._form else b""

    def event(self, event: Json, shown: bytes) -> bytes:
        """One event of a stream.

        Args:
            event: as it passed the filter.
            shown: the same as a completion's client gets it; empty where it gets none.
        """
        return self._form.event(event) if self._form and shown else shown

    def again(self, shown: bytes) -> bytes:
        """One event of an answer out of the cache, as it was framed."""
        if shown == _END:
            return b""
        if self.gathered or self._form:
            event = orjson.loads(shown[6:])
            if self.gathered:
                self.gathered.add(event)
            return self.event(event, shown)
        return shown

    async def end(self, visit: Visit, cut: ApiError | None = None) -> bytes:
        """How a stream ends; what was delivered is kept before the client knows the end.

        Args:
            visit: told where that has to wait.
            cut: why the answer is not whole.
        """
        last = frame(orjson.dumps(cut.body())) if cut else b""
        if self._form:
            last = self._form.end(cut)
        if cut:
            self.leave(cut)
            is_kept = await self._form.keep() if self._form else True
        else:
            is_kept = await self._keep(self.gathered.choice() if self.gathered else {})
        if not is_kept:
            visit.notes.setdefault("history", "late")
        return last + _END

    def leave(self, error: BaseException) -> None:
        """The answer ends early: keep what was delivered, behind the request's back."""
        if not self._turn:
            return
        if isinstance(error, ApiError) and error.status < 500 and self._turn.gathered.is_empty:
            self._turn.is_over = True  # refused: nothing was said
            return
        self._turn.leave(dialogue.reason_of(error))

    async def _keep(self, choice: Json) -> bool:
        """Whether all is kept that is to be."""
        is_kept = True
        if self._turn:
            reply = self._form.reply if self._form else _reply(choice)
            is_kept = await self._turn.keep(reply)
        if self._form:
            is_kept &= await self._form.keep()
        return is_kept


def _reply(choice: Json) -> list[Json]:
    """Items of a completion's choice."""
    found = items.from_answer(choice["message"])
    reason = dialogue.REASONS.get(choice.get("finish_reason") or "")
    return items.cut(found, reason) if reason else found
