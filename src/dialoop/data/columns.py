"""Column names: what people call the question, the answer and the rest, in English and Chinese."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from dialoop.core.errors import UserError

_SPELLINGS: dict[str, str] = {
    "messages": "消息 对话",
    "conversations": "conversation",
    "system": "system_prompt 系统 系统提示 系统提示词",
    "instruction": "指令 指示 任务",
    "input": "输入",
    "output": "输出",
    "query": ("prompt question problem ask anchor 问题 问 提问 用户 用户问题 用户提问 咨询 客户"),
    "response": (
        "answer answers target targets answer_key completion 回答 答 答案 回复 答复 解答 客服"
    ),
    "solution": "",
    "text": "文本 正文",
    "content": "内容",
    "history": "历史 历史对话 对话历史",
    "chosen": "response_chosen chosen_response 优选 优选回答",
    "rejected": "response_rejected 劣选 劣选回答",
    "rejected_response": "rejected_responses",
    "chosen_messages": "",
    "rejected_messages": "",
    "label": "kto_tag",
    "tools": "functions",
    "function": "",
    "images": "image 图片 图像",
    "positive": "positives pos positive_messages",
    "negative": "negatives neg negative_messages",
    "sentence1": "sentence_a text1 句子1",
    "sentence2": "sentence_b text2 句子2",
    "score": "similarity similarity_score 相似度",
    "videos": "video",
    "audios": "audio",
}
FIELDS = tuple(_SPELLINGS)
SAMPLE_FIELDS = {
    "messages", "text", "tools", "rejected", "label", "query", "positives", "negatives", "score",
}  # fmt: skip
"""Keys of the canonical form, which extra columns may not take."""
_CANONICAL = {
    name: field for field, names in _SPELLINGS.items() for name in [field, *names.split()]
}
_JSON_IN_TEXT = {"messages", "conversations", "history", "images", "tools", "function"}


class RecordError(UserError):
    """One record cannot be used; `reason` is the kind of fault, in words that do not vary."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def is_known(name: str) -> bool:
    """Whether a column of this name means something to a layout."""
    return name.strip().lower() in _CANONICAL


class Row(Mapping[str, Any]):
    """One record by its own column names, and by the names that layouts know (`has`, `field`).

    Args:
        raw: the record.
    """

    def __init__(self, raw: dict[str, Any]) -> None:
        self._raw = raw
        self._names = _names(tuple(raw))
        self._used: set[str] = set()
        self._present = {f for f, ns in self._names.items() if any(raw[n] is not None for n in ns)}

    def __getitem__(self, name: str) -> Any:
        return self._raw[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def names(self, field: str) -> tuple[str, ...]:
        """The columns that mean this field, empty ones too."""
        return self._names.get(field, ())

    def has(self, *fields: str) -> bool:
        """Whether any of these fields has a value."""
        return not self._present.isdisjoint(fields)

    def peek(self, field: str) -> Any:
        """The value of a field, undecided where two columns mean it; for `detect`."""
        if field not in self._present:
            return None
        return next(self._raw[n] for n in self._names[field] if self._raw[n] is not None)

    def field(self, field: str) -> Any:
        """The value of a field, which is thereby used; None where it is absent.

        Raises:
            RecordError: two columns mean this field.
        """
        names = [n for n in self.names(field) if self._raw[n] is not None]
        if len(names) > 1:
            both = " and ".join(f"`{n}`" for n in names)
            raise RecordError(f"two columns mean the {field}", f"{both}; choose one with `columns`")
        self._used.update(self.names(field))
        if not names:
            return None
        value = self._raw[names[0]]
        if field in _JSON_IN_TEXT and isinstance(value, str) and value.strip()[:1] in {"[", "{"}:
            try:
                return json.loads(value)
            except ValueError as error:
                raise RecordError(f"the {field} column is not JSON", str(error)) from error
        return value

    def use(self, name: str) -> Any:
        """The value of a column by its own name, which is thereby used."""
        self._used.add(name)
        return self._raw[name]

    def extra(self) -> tuple[tuple[str, Any], ...]:
        """Columns that nobody has used; one named like a field of samples gets a `_` in front."""
        out: dict[str, Any] = {}
        for column, value in self._raw.items():
            if column in self._used or value is None:
                continue
            name = column
            while name in SAMPLE_FIELDS or (name != column and name in self._raw):
                name = f"_{name}"
            out[name] = value
        return tuple(out.items())


@lru_cache(maxsize=4096)
def _names(raw: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in raw:
        field = _CANONICAL.get(name.strip().lower())
        if field:
            found[field] = (*found.get(field, ()), name)
    return found


def rename(raw: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Apply the user's names; a column of the target's own name gives way under `_name`."""
    if not columns:
        return raw
    out: dict[str, Any] = {}
    for name, value in raw.items():
        target = columns.get(name, name)
        taken = target == name and name in columns.values() and any(c in raw for c in columns)
        out[f"_{name}" if taken else target] = value
    return out
