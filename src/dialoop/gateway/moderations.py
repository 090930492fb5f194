"""`POST /v1/moderations`: texts before the gateway's own filter, in OpenAI's form.

A filter says yes or no, so scores are 0 or 1; a category of its own stands beside OpenAI's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from dialoop.gateway.call import as_object
from dialoop.gateway.guard import Blocked
from dialoop.gateway.store.ids import new_id
from dialoop.serve.failure import ApiError, bad

if TYPE_CHECKING:
    from dialoop.gateway.app import App
    from dialoop.gateway.guard import Guard
    from dialoop.gateway.visit import Visit

Json = dict[str, Any]

_CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit",
    "illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent", "sexual",
    "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


async def moderate(app: App, visit: Visit) -> None:
    """Say which texts may not pass.

    Raises:
        ApiError: no filter is configured, or a field is wrong.
    """
    parts = app.parts
    if visit.key:
        visit.key.allow("chat")
    if parts.guard is None:
        raise ApiError(404, "no filter is configured: name one as `guard` of the gateway")
    body = await visit.json(parts.job.sizes.max_body_bytes, parts.job.patience.client_s)
    if unknown := sorted(body.keys() - {"input", "model"}):
        raise bad(unknown[0][:100], "unknown parameter")
    texts = _texts(body.get("input"))
    num = sum(map(len, texts))
    if num > parts.job.sizes.max_prompt_chars:
        raise ApiError(413, f"input: {num} characters are more than allowed", param="input")
    results = [_result(parts.guard, text) for text in texts]
    found = {"id": new_id("modr"), "model": parts.guard.policy, "results": results}
    await visit.reply.json(found)


def _texts(raw: Any) -> list[str]:
    """Each text of the input; parts of one message are texts of their own."""
    given = cast("list[Any]", raw) if isinstance(raw, list) else [raw]
    found: list[str] = []
    for place, one in enumerate(given):
        part = as_object(one)
        if part and part.get("type") != "text":
            raise bad(f"input[{place}].type", "only texts are filtered")
        text = part.get("text") if part else one
        if not isinstance(text, str):
            raise bad("input", "a text, or a list of texts or of text parts, is required")
        found.append(text)
    if not found:
        raise bad("input", "at least one text is required")
    return found


def _result(guard: Guard, text: str) -> Json:
    category = None
    try:
        guard.check([text])
    except Blocked as blocked:
        category = blocked.category
    names = [*_CATEGORIES, *([category] if category and category not in _CATEGORIES else [])]
    return {
        "flagged": category is not None,
        "categories": {name: name == category for name in names},
        "category_scores": {name: float(name == category) for name in names},
        "category_applied_input_types": {name: ["text"] for name in names},
    }
