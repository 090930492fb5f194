"""Json: the answer is a JSON object with given keys, and their values are right. Graded.

Half-right answers are worth something, and so are poor ones that come near, so that a model that
never answers whole objects still has a direction: the object and each key are parts of equal
weight, each graded as the constants below say.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from typing_extensions import override

from dialoop.core.errors import UserError
from dialoop.train.rewards import Reward

if TYPE_CHECKING:
    from dialoop.train.rewards import Answered

Type = Literal["string", "number", "integer", "boolean", "array", "object", "any"]

BESIDE = 0.5
"""Of the object, where text stands around it."""
BEGUN = 0.25
"""Of the object, where it is begun and never ends; half of that after other text."""
TYPED = 0.5
"""Of a key, with a value of the right type that is not the right one."""
PRESENT = 0.25
"""Of a key, with a value of another type."""
NAMED = 0.125
"""Of a key, where there is no whole object but its name in quotes."""

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "number": (int, float), "integer": (int,), "boolean": (bool,),
    "array": (list,), "object": (dict,), "any": (object,),
}  # fmt: skip


class Json(Reward, frozen=True):
    """The mean over the object (less with text around it, or cut off) and each of its keys."""

    kind: Literal["json"] = "json"
    keys: dict[str, Type] = Field(default={})
    """Keys that the object must have, and the JSON types of their values."""
    solution: str | None = None
    """Column with the right object, or its JSON; a key of the right type but another value is then
    worth half, and one of another type a quarter."""
    strict: bool = False
    """Worth 1 or 0: only an answer in which all is right counts."""

    @override
    def score(self, answer: Answered) -> float:
        """Between 0 and 1."""
        right = self._right(answer)
        found, is_alone = _object(answer.text)
        if found is None:
            parts = self._near(answer.text)
        else:
            parts = [1.0 if is_alone else BESIDE]
            parts += [_key(found, key, kind, right) for key, kind in self.keys.items()]
        value = sum(parts) / len(parts)
        return float(value == 1) if self.strict else value

    def _near(self, text: str) -> list[float]:
        """The parts of an answer without a whole object."""
        before, brace, _ = text.partition("{")
        begun = BEGUN / (2 if before.strip() else 1) if brace else 0.0
        return [begun, *(NAMED if f'"{key}"' in text else 0.0 for key in self.keys)]

    def _right(self, answer: Answered) -> dict[str, Any] | None:
        if self.solution is None:
            return None
        right = answer.column(self.solution)
        if isinstance(right, str):
            right, _ = _object(right)
        if not isinstance(right, dict):
            raise UserError(
                f"reward json: column `{self.solution}` of the record holds no JSON object",
                hint="name the column with the right object as `solution`, or leave it out",
            )
        return right


def _key(found: dict[str, Any], key: str, kind: Type, right: dict[str, Any] | None) -> float:
    if key not in found:
        return 0.0
    value = found[key]
    is_flag = isinstance(value, bool) and kind in {"number", "integer"}
    if is_flag or not isinstance(value, _TYPES[kind]):
        return PRESENT
    return 1.0 if right is None or value == right.get(key) else TYPED


def _object(text: str) -> tuple[dict[str, Any] | None, bool]:
    """The first JSON object of a text, and whether nothing stands around it."""
    start = text.find("{")
    while start >= 0:
        try:
            found, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            start = text.find("{", start + 1)
            continue
        return found, not text[:start].strip() and not text[end:].strip()
    return None, False
