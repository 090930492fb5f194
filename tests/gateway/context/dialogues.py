"""Templates, counters and dialogues that the context's tests share."""

from pathlib import Path
from typing import Any

from tests.tiny import CHATML, write_tiny_tokenizer

from dialoop.chat.template import Template
from dialoop.chat.tokenizer import load_tokenizer

NATIVE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% if tools %}<|im_start|>system\nTools:\n{% for tool in tools %}{{ tool | tojson }}\n"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['reasoning_content'] and loop.last %}({{ m['reasoning_content'] }}){% endif %}"
    "{{ m['content'] | trim }}{% for c in m['tool_calls'] or [] %}<call>{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes tools and calls, a system message of its own, and reasoning in the last message only."""
UNENDED = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""Ends no message with a token, so that text can only be encoded as a whole."""
SOURCES = {"chatml": CHATML, "native": NATIVE, "unended": UNENDED}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


def make_template(folder: Path, name: str) -> Template:
    """One of the templates, with the tiny tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_tokenizer(folder)
    return Template(load_tokenizer(folder), name, SOURCES[name], SOURCES[name])


def user(content: str | list[Any]) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant(text: str, **fields: Any) -> dict[str, Any]:
    """A message of the assistant."""
    return {"role": "assistant", "content": text, **fields}


def tool_turn(number: int, place: str) -> list[dict[str, Any]]:
    """A question that is answered by way of a tool."""
    function = {"name": "weather", "arguments": f'{{"place": "{place}"}}'}
    call = {"id": f"c{number}", "type": "function", "function": function}
    return [
        user(f"How is the weather in {place}?"),
        assistant("", tool_calls=[call]),
        {"role": "tool", "tool_call_id": f"c{number}", "content": f"sunny in {place}"},
        assistant(f"It is sunny in {place}."),
    ]


def long_dialogue(num_turns: int) -> list[dict[str, Any]]:
    """A system message and turns of which each holds a fact of its own."""
    messages = [{"role": "system", "content": "Be brief."}]
    for number in range(num_turns):
        messages += [user(f"My key number {number} is {7000 + number}."), assistant("I noted it.")]
    return messages
