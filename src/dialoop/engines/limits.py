"""What no engine answers: requests without a prompt, or with more tokens than there is room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialoop.core.errors import UserError

if TYPE_CHECKING:
    from dialoop.engines import Request


def check_room(request: Request, limit: int) -> None:
    """Refuse a request that does not fit.

    Args:
        request: what was asked.
        limit: prompt and answer together, in tokens.

    Raises:
        UserError: it does not fit.
    """
    if not request.prompt_ids or request.sampling.max_tokens < 1:
        raise UserError("a prompt and room for one token are needed")
    if len(request.prompt_ids) + request.sampling.max_tokens > limit:
        raise UserError(
            f"{len(request.prompt_ids)} prompt tokens and {request.sampling.max_tokens} new "
            f"ones pass the limit of {limit}",
            hint="shorten the prompt, or ask for fewer tokens",
        )
