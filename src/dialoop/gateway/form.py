"""The contract of forms: how an answer that is asked of an engine as a chat is told otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.gateway.call import Json
    from dialoop.serve.failure import ApiError


class Form(Protocol):
    """One answer in another form than that of chat completions."""

    before: Sequence[Json]
    """Items that were said before, where the request names them by itself."""
    new: list[Json]
    """Items of the request."""
    strategy: Literal["drop", "refuse"] | None
    """What becomes of a dialogue that is too long; None leaves it to the model's policy."""

    def whole(self, found: Json) -> bytes:
        """The body that a whole completion is told in."""
        ...

    def begin(self) -> bytes:
        """How a stream begins."""
        ...

    def event(self, event: Json) -> bytes:
        """What a chunk is told in; empty where nothing is."""
        ...

    def end(self, cut: ApiError | None) -> bytes:
        """How a stream ends: that the answer is whole, or why it is not."""
        ...

    @property
    def reply(self) -> list[Json]:
        """Items of the answer, as far as it was told; those of a cut one say so."""
        ...

    async def keep(self) -> bool:
        """Keep the answer, where that was asked for; false where that is still to be done."""
        ...
