"""Layouts: every accepted spelling becomes the same canonical sample; two claims are refused."""

# ruff: noqa: E501  one layout a line
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialoop.core.errors import UserError
from dialoop.data.columns import FIELDS, RecordError
from dialoop.data.formats import formats, recognise, to_row
from dialoop.data.sample import from_json, to_json

KNOWN = formats()
U = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
S = {"role": "system", "content": "s"}
B = {"role": "assistant", "content": "b"}
CALL = {
    "id": "call_0",
    "type": "function",
    "function": {"name": "f", "arguments": '{"x": 1}'},
}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "1"}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "", "parameters": {"type": "object"}},
}
BARE_TOOL = {"name": "f", "parameters": {"type": "object"}}
QA = {"messages": [U, A]}


def canonical(record: Any, columns: dict[str, str] | None = None) -> dict[str, Any]:
    row = to_row(record, columns or {})
    sample = recognise(row, KNOWN).read(row)
    out = to_json(sample)
    assert to_json(from_json(out)) == out, "the canonical form reads back"
    return out


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "openai": ({"messages": [U, A]}, QA),
    "bare list": ([U, A], QA),
    "array round the object": ([{"query": "q", "response": "a"}], QA),
    "developer": ({"messages": [{"role": "developer", "content": "s"}, U, A]}, {"messages": [S, U, A]}),
    "system column": ({"system_prompt": "s", "messages": [U, A]}, {"messages": [S, U, A]}),
    "messages as text": ({"messages": json.dumps([U, A])}, QA),
    "content parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, A]}, QA),
    "sharegpt": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, QA),
    "sharegpt bot": ({"conversation": [{"from": "user", "value": "q"}, {"from": "bot", "value": "a"}]}, QA),
    "pairs": ({"conversation": [{"human": "q", "assistant": "a"}]}, QA),
    "pairs bot": ({"conversation": [{"user": "q", "bot": "a"}], "system": "s"}, {"messages": [S, U, A]}),
    "alpaca": ({"instruction": "q", "input": "", "output": "a"}, QA),
    "alpaca input": ({"instruction": "q", "input": "i", "output": "a"}, {"messages": [{"role": "user", "content": "q\ni"}, A]}),
    "alpaca history": ({"instruction": "q", "output": "a", "history": [["q", "b"]], "system": "s"}, {"messages": [S, U, B, U, A]}),
    "input and output": ({"input": "q", "output": "a"}, QA),
    "query": ({"query": "q", "response": "a", "history": []}, QA),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, QA),
    "trl turns": ({"prompt": [U], "completion": [A]}, QA),
    "problem and solution": ({"problem": "q", "solution": "a"}, QA),
    "question and answer_key": ({"question": "q", "answer_key": "a"}, QA),
    "chinese": ({"问题": "q", "回答": "a"}, QA),
    "chinese alpaca": ({"指令": "q", "输入": "", "输出": "a"}, QA),
    "placeholders": ({"query": "{{name}}", "response": "a"}, {"messages": [{"role": "user", "content": "{{name}}"}, A]}),
    "text": ({"text": "t"}, {"text": "t"}),
    "content": ({"content": "t"}, {"text": "t"}),
    "response only": ({"response": "t"}, {"text": "t"}),
    "prompt only": ({"prompt": "q", "solution_id": 3}, {"messages": [U], "solution_id": 3}),
    "extra columns": ({"messages": [U, A], "solution": "4", "id": 7}, QA | {"solution": "4", "id": 7}),
    "trl preference": ({"prompt": "q", "chosen": "a", "rejected": "b"}, QA | {"rejected": [[B]]}),
    "trl conversational": ({"prompt": [U], "chosen": [A], "rejected": [B]}, QA | {"rejected": [[B]]}),
    "whole dialogues": ({"prompt": "q", "chosen": [U, A], "rejected": [U, B], "score_chosen": 8}, QA | {"rejected": [[B]], "score_chosen": 8}),
    "ultrafeedback": ({"prompt": "q", "messages": [U, A], "chosen": [U, A], "rejected": [U, B]}, QA | {"rejected": [[B]]}),
    "llama-factory": (
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        QA | {"rejected": [[B]]},
    ),
    "llama-factory alpaca": ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, QA | {"rejected": [[B]]}),
    "llama-factory v1": (
        {"chosen_messages": [{"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0}, {"role": "assistant", "content": [{"type": "text", "value": "a"}], "loss_weight": 1.0}],
         "rejected_messages": [{"role": "user", "content": [{"type": "text", "value": "q"}]}, {"role": "assistant", "content": [{"type": "text", "value": "b"}]}]},
        {"messages": [U, A | {"weight": 1.0}], "rejected": [[B]]},
    ),
    "question and response_chosen": ({"question": "q", "response_chosen": "a", "response_rejected": "b"}, QA | {"rejected": [[B]]}),
    "rejected_response": ({"messages": [U, A], "rejected_response": "b"}, QA | {"rejected": [[B]]}),
    "several rejected": ({"query": "q", "response": "a", "rejected_response": ["b", "c"]}, QA | {"rejected": [[B], [B | {"content": "c"}]]}),
    "rejected_messages": ({"messages": [U, A], "rejected_messages": [U, B]}, QA | {"rejected": [[B]]}),
    "ranking": ({"instruction": "q", "input": "", "output": ["a", "b", "b"]}, QA | {"rejected": [[B]]}),
    "transcripts": ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, QA | {"rejected": [[B]]}),
    "text beside": ({"instruction": "q", "output": "a", "text": "t"}, QA | {"_text": "t"}),
    "kto": ({"messages": [U, A], "label": True}, QA | {"label": True}),
    "kto_tag": ({"prompt": "q", "completion": "a", "kto_tag": 0}, QA | {"label": False}),
    "class label stays": ({"messages": [U, A], "label": 3}, QA | {"_label": 3}),
    "glaive": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}, {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}],
         "tools": json.dumps([BARE_TOOL])},
        {"messages": [U, CALLS, RESULT, A], "tools": [TOOL]},
    ),
    "ms-swift tools": (
        {"messages": [U, {"role": "tool_call", "content": '{"name": "f", "arguments": "{\\"x\\": 1}"}'}, {"role": "tool_response", "content": "1"}, A], "tools": [json.dumps(TOOL)]},
        {"messages": [U, CALLS, RESULT, A], "tools": [TOOL]},
    ),
    "openai tools": ({"messages": [U, CALLS, RESULT | {"tool_call_id": "call_0"}, A], "tools": [TOOL]}, {"messages": [U, CALLS, RESULT | {"tool_call_id": "call_0"}, A], "tools": [TOOL]}),
    "anthropic": (
        {"messages": [U, {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "tool_use", "id": "call_0", "name": "f", "input": {"x": 1}}]},
                      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_0", "content": "1"}]}, A]},
        {"messages": [U, CALLS | {"reasoning_content": "t"}, RESULT | {"tool_call_id": "call_0"}, A]},
    ),
    "bfcl": ({"id": "x", "question": [[U]], "function": [BARE_TOOL]}, {"messages": [U], "tools": [TOOL], "id": "x"}),
    "loss": ({"messages": [U, A | {"loss": False}, U, A | {"loss": True}]}, {"messages": [U, A | {"weight": 0.0}, U, A | {"weight": 1.0}]}),
    "retrieval": ({"query": "q", "positive": "p", "negative": ["n", "m"]}, {"query": [U], "positives": [[U | {"content": "p"}]], "negatives": [[U | {"content": "n"}], [U | {"content": "m"}]]}),
    "anchor": ({"anchor": "q", "positive": "p"}, {"query": [U], "positives": [[U | {"content": "p"}]]}),
    "ms-swift embedding": ({"messages": [U], "positive_messages": [[U | {"content": "p"}]], "negative_messages": [[U | {"content": "n"}]]},
                           {"query": [U], "positives": [[U | {"content": "p"}]], "negatives": [[U | {"content": "n"}]]}),
    "sentence pairs": ({"sentence1": "q", "sentence2": "p", "score": 0.5}, {"query": [U], "positives": [[U | {"content": "p"}]], "score": 0.5}),
    "images": ({"messages": [{"role": "user", "content": "<image>q"}, A], "images": ["1.jpg"]},
               {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "1.jpg"}}, {"type": "text", "text": "q"}]}, A]}),
    "image bytes": ({"query": "q", "response": "a", "image": {"bytes": "/9j/AA==", "path": None}},
                    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/AA=="}}, {"type": "text", "text": "q"}]}, A]}),
    "crosswoz": ({"messages": [{"role": "usr", "content": "q"}, {"role": "sys", "content": "a"}]}, QA),
    "kdconv": ({"messages": [{"message": "q"}, {"message": "a", "attrs": []}]}, QA),
    "multiwoz": ({"log": [{"text": "q"}, {"text": "a"}]}, QA),
    "camrest": ({"dial": [{"usr": {"transcript": "q"}, "sys": {"sent": "a"}}]}, QA),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_layout_becomes_canonical(name: str) -> None:
    record, expected = CASES[name]
    assert canonical(record) == expected


BAD: dict[str, tuple[Any, str]] = {
    "two layouts": ({"messages": [U, A], "instruction": "q", "output": "a"}, "claimed by two layouts, `alpaca` and `messages`"),
    "two questions": ({"query": "q", "question": "r", "answer": "a"}, "two columns mean the query: `query` and `question`"),
    "no layout": ({"colour": "red"}, "no known layout: columns colour"),
    "string": ("hello", "not an object"),
    "null answer": ({"instruction": "q", "output": None}, "empty answer"),
    "blank answer": ({"query": "q", "response": "  \n"}, "empty answer"),
    "blank turn": ({"messages": [U, A | {"content": " "}]}, "empty answer"),
    "blank question": ({"query": "", "response": "a"}, "empty question"),
    "role": ({"messages": [{"role": "wizard", "content": "q"}]}, "unknown role: 'wizard'"),
    "same": ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    "two systems": ({"system": "x", "messages": [S, U, A]}, "two system prompts"),
    "call": ({"messages": [U, {"role": "tool_call", "content": "{f"}]}, "a tool call is not JSON"),
    "tools": ({"messages": [U, A], "tools": "f(x)"}, "the tools column is not JSON"),
    "places": ({"messages": [{"role": "user", "content": "<image><image>"}, A], "images": ["1"]}, "placeholders and pictures do not match: 2 for 1"),
    "video": ({"messages": [U, A], "videos": ["1.mp4"]}, "content of a kind that is not read"),
    "no positive": ({"query": "q", "negative": ["n"]}, "no positive document"),
    "system only": ({"messages": [S]}, "only a system prompt"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_says_why(name: str) -> None:
    record, words = BAD[name]
    with pytest.raises(RecordError) as caught:
        canonical(record)
    assert words in str(caught.value)


def test_columns_map_unusual_names() -> None:
    columns = {"utterance": "query", "reply": "response"}
    assert canonical({"utterance": "q", "reply": "a"}, columns) == QA
    clash = {"query": "old", "utterance": "q", "reply": "a"}
    assert canonical(clash, columns) == QA | {"_query": "old"}


PLUGIN = '''
from typing import Literal
from dialoop.chat.message import message
from dialoop.data.formats import Format
from dialoop.data.sample import Sample

class Tickets(Format, frozen=True):
    """Tickets of our desk."""
    kind: Literal["tickets"] = "tickets"
    def detect(self, row):
        return "ticket" in row
    def read(self, row):
        ask, say = row.use("ticket").split(" => ")
        return Sample((message("user", ask), message("assistant", say)), extra=row.extra())
'''


def test_a_plug_in_adds_a_layout(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN, encoding="utf-8")
    row = to_row({"ticket": "q => a", "n": 1}, {})
    sample = recognise(row, formats(path)).read(row)
    assert to_json(sample) == QA | {"n": 1}
    path.write_text("x = 1", encoding="utf-8")
    with pytest.raises(UserError, match="holds no layout"):
        formats(path)
    path.write_text("1 / 0", encoding="utf-8")
    with pytest.raises(UserError, match="does not load: ZeroDivisionError"):
        formats(path)
    with pytest.raises(UserError, match="no such plug-in"):
        formats(tmp_path / "none.py")


leaf = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from(["", "q", "[", "{}", "<image>"])
)
turn = st.dictionaries(
    st.sampled_from(
        ["role", "from", "content", "value", "tool_calls", "weight", "message", "human"]
    ),
    leaf | st.sampled_from(["user", "assistant", "tool_call", "usr", "sys"]),
    max_size=4,
)
cell = leaf | st.lists(turn | leaf | st.lists(leaf, max_size=2), max_size=3) | turn
record = st.dictionaries(
    st.sampled_from([*FIELDS, "prompt", "log", "dial", "kto_tag", "x"]), cell, max_size=5
)


@settings(max_examples=1500, deadline=None)
@given(record)
def test_any_record_is_read_or_refused(raw: dict[str, Any]) -> None:
    with contextlib.suppress(RecordError):
        canonical(raw)
