"""Prompts equal transformers' byte for byte; rows train the assistant's tokens and no other."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.chat import samples
from tests.chat.samples import WEATHER, chat, tool_chat

from dialoop.chat.message import Message, Role, ToolCall, message, to_openai, tool_to_openai
from dialoop.chat.template import Template
from dialoop.chat.templates import built_ins
from dialoop.core.errors import UserError

SOURCES = {
    "chatml": samples.CHATML,
    "internlm3": samples.INTERNLM3,
    "llama3": samples.LLAMA3,
    "qwen tools": samples.QWEN_TOOLS,
    "qwen thinking": samples.QWEN_THINKING,
    "strict": samples.STRICT,
}
DIALOGUES = {
    "one turn": chat("hi", "hello"),
    "chinese": chat("你好吗", "很好 <b>&\"'</b>", "再见", "\n再见\n"),
    "spaces": chat("  a  b ", "  c\n\n", "d", "e"),
}


def _template(folder: Path, source: str | None) -> Template:
    return Template.from_folder(samples.tokenizer_folder(folder, source))


def _reference(folder: Path, messages: list[Message], tools: list, **options: bool) -> str:
    from transformers import AutoTokenizer

    spelt = [to_openai(item) for item in messages]
    for item, raw in zip(messages, spelt, strict=True):
        for call, out in zip(item.tool_calls, raw.get("tool_calls", ()), strict=True):
            out["function"]["arguments"] = call.arguments
    return AutoTokenizer.from_pretrained(folder).apply_chat_template(
        spelt, tools=[tool_to_openai(t) for t in tools] or None, tokenize=False, **options
    )


@pytest.mark.parametrize("dialogue", DIALOGUES)
@pytest.mark.parametrize("source", SOURCES)
def test_prompts_equal_those_of_transformers(tmp_path: Path, source: str, dialogue: str) -> None:
    template = _template(tmp_path, SOURCES[source])
    messages = DIALOGUES[dialogue]
    expected = _reference(tmp_path, messages[:-1], [], add_generation_prompt=True)
    assert template.prompt(messages[:-1]) == expected
    if source != "qwen thinking":  # transformers refuses to continue text that occurs nowhere else
        expected = _reference(tmp_path, messages, [], continue_final_message=True)
        assert template.prompt(messages, continue_final=True) == expected


@pytest.mark.parametrize("source", ["llama3", "qwen tools"])
def test_prompts_with_tools_equal_those_of_transformers(tmp_path: Path, source: str) -> None:
    template = _template(tmp_path, SOURCES[source])
    assert template.knows_tools
    for end in (2, 4):
        messages = tool_chat()[:end]
        expected = _reference(tmp_path, messages, [WEATHER], add_generation_prompt=True)
        assert template.prompt(messages, [WEATHER]) == expected


def test_prompt_ids_equal_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    template = _template(tmp_path, samples.INTERNLM3)
    messages = chat("the parcel\n\narrives", "on Monday", "你好")
    expected = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [to_openai(m) for m in messages], add_generation_prompt=True, return_dict=False
    )
    assert template.prompt_ids(messages) == expected


@pytest.mark.parametrize(
    ("source", "end"),
    [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("qwen tools", "<|im_end|>")],
)
def test_every_answer_and_its_end_token_are_targets(tmp_path: Path, source: str, end: str) -> None:
    template = _template(tmp_path, SOURCES[source])
    messages = chat("one", "first answer", "two", "second 回答", system="Be kind.")
    (row,) = template.train_rows(messages)
    learned = [text for text, weight in template.spans(row) if weight]
    assert learned == [f"first answer{end}", f"second 回答{end}"]
    assert row.ids.dtype == np.int32
    assert row.weights.dtype == np.float32
    assert template.stop_ids[0] == template.tokenizer.token_id(end)
    assert set(template.stop_ids) >= set(template.tokenizer.eos_ids)


def test_a_template_with_a_space_before_answers_trains_the_space_too(tmp_path: Path) -> None:
    template = _template(tmp_path, samples.STRICT)
    (row,) = template.train_rows(chat("one", "yes", "two", "no"))
    assert [t for t, w in template.spans(row) if w] == [" yes</s>", " no</s>"]


@pytest.mark.parametrize("source", SOURCES)
def test_each_answer_is_learned_after_the_ids_that_serving_sends(
    tmp_path: Path, source: str
) -> None:
    template = _template(tmp_path, SOURCES[source])
    messages = chat("one", "\nfirst", "two", "second\n\n", "three", " third ")
    found = []
    for row in template.train_rows(messages):
        starts = np.flatnonzero(np.diff(row.weights) > 0) + 1
        found += [row.ids[:start].tolist() for start in starts]
    assert found == [template.prompt_ids(messages[:end]) for end in (1, 3, 5)]


def test_a_template_that_takes_reasoning_out_gives_one_row_a_turn(tmp_path: Path) -> None:
    template = _template(tmp_path, samples.QWEN_THINKING)
    messages = [
        message("user", "one"),
        message("assistant", "A", thinking="because a"),
        message("user", "two"),
        message("assistant", "B", thinking="because b"),
    ]
    rows = template.train_rows(messages)
    learned = [[t for t, w in template.spans(row) if w] for row in rows]
    assert learned == [
        ["<think>\nbecause a\n</think>\n\nA<|im_end|>"],
        ["<think>\nbecause b\n</think>\n\nB<|im_end|>"],
    ]
    assert "because a" not in template.tokenizer.decode(rows[1].ids.tolist())
    template.verify(messages)


def test_weights_of_messages_are_kept(tmp_path: Path) -> None:
    template = _template(tmp_path, samples.CHATML)
    messages = [
        message("user", "one"),
        message("assistant", "A", weight=0.0),
        message("user", "two"),
        message("assistant", "B", weight=0.25),
        message("user", "three"),
        message("assistant", "C"),
    ]
    (row,) = template.train_rows(messages, weight=0.5)
    spans = [(t, w) for t, w in template.spans(row) if w]
    assert spans == [("B<|im_end|>", 0.25), ("C<|im_end|>", 0.5)]
    assert template.train_rows(messages[:2]) == []


def test_tool_calls_are_targets_and_results_are_not(tmp_path: Path) -> None:
    template = _template(tmp_path, samples.QWEN_TOOLS)
    (row,) = template.train_rows(tool_chat(), [WEATHER])
    learned = [t for t, w in template.spans(row) if w]
    # This template writes a call without text on the line after the role, as the prompt ends.
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm", "days": 2}}\n</tool_call>'
    assert learned == [f"{call}<|im_end|>", "Yes, it rains.<|im_end|>"]


def test_a_template_without_tools_gets_them_as_json_in_text(tmp_path: Path) -> None:
    template = _template(tmp_path, samples.INTERNLM3)
    assert not template.knows_tools
    prompt = template.prompt(tool_chat()[:4], [WEATHER])
    assert '"name": "weather"' in prompt.partition("<|im_end|>")[0]
    assert '<|im_start|>user\n<tool_response>\n{"rain": true}\n</tool_response><|im_end|>' in prompt
    (row,) = template.train_rows(tool_chat(), [WEATHER])
    learned = [t for t, w in template.spans(row) if w]
    assert learned[0].startswith('<tool_call>\n{"name": "weather"')
    assert learned[1] == "Yes, it rains.<|im_end|>"
    template.verify(tool_chat(), [WEATHER])


def test_an_answer_that_the_prompt_does_not_lead_to_is_refused(tmp_path: Path) -> None:
    source = samples.INTERNLM3.replace(
        "{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\n<think>\\n' }}"
    )
    template = _template(tmp_path, source)
    with pytest.raises(UserError, match=r"messages\[3\]: the chat template .* differently"):
        template.train_rows(
            [*chat("a", "<think>\nb", "c"), message("assistant", "no reasoning here")]
        )


def test_a_template_without_an_end_token_is_refused(tmp_path: Path) -> None:
    template = _template(
        tmp_path,
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    )
    with pytest.raises(UserError, match=r"messages\[1\]: .* writes no end token"):
        template.train_rows(chat("a", "b"))


def test_what_the_template_refuses_is_the_users_error(tmp_path: Path) -> None:
    template = _template(tmp_path, samples.STRICT)
    with pytest.raises(UserError, match="refuses this dialogue: roles must alternate"):
        template.prompt([message("user", "a"), message("user", "b")])
    with pytest.raises(UserError, match="at least one message"):
        template.prompt([])
    with pytest.raises(UserError, match="only an assistant message"):
        template.prompt(chat("a"), continue_final=True)


def test_a_template_cannot_reach_the_machine(tmp_path: Path) -> None:
    template = _template(tmp_path, "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match="unsafe"):
        template.prompt(chat("a"))


def test_a_template_that_is_not_jinja_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not Jinja: line 2"):
        _template(tmp_path, "a\n{% if %}").prompt(chat("a"))


@pytest.mark.parametrize(
    ("model_type", "special", "name", "end"),
    [
        ("internlm3", samples.SPECIAL[:4], "internlm3", "<|im_end|>"),
        ("llama", samples.SPECIAL[:2] + samples.SPECIAL[4:], "llama3", "<|eot_id|>"),
        ("qwen2", samples.SPECIAL[:4], "chatml", "<|im_end|>"),
        ("gpt2", samples.SPECIAL[:2], "plain", "</s>"),
    ],
)
def test_a_checkpoint_without_a_template_gets_a_built_in_one(
    tmp_path: Path, model_type: str, special: tuple[str, ...], name: str, end: str
) -> None:
    folder = samples.tokenizer_folder(tmp_path, None, special)
    (folder / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    template = Template.from_folder(folder)
    assert template.name == f"built-in {name}"
    (row,) = template.train_rows(chat("one", "A", "two", "B", system="S"))
    assert [t.strip() for t, w in template.spans(row) if w] == [f"A{end}", f"B{end}"]
    assert set(built_ins()) == {"internlm3", "llama3", "chatml", "plain"}
    with pytest.raises(UserError, match="no built-in chat template `vicuna`"):
        Template.from_folder(folder, built_in="vicuna")


def test_named_templates_serve_dialogues_with_and_without_tools(tmp_path: Path) -> None:
    folder = samples.tokenizer_folder(tmp_path, samples.CHATML)
    (folder / "additional_chat_templates").mkdir()
    file = folder / "additional_chat_templates" / "tool_use.jinja"
    file.write_text("{{ tools[0].function.name }}{# tool_calls #}")
    template = Template.from_folder(folder)
    assert template.prompt(chat("a"), [WEATHER]) == "weather"
    assert template.prompt(chat("a")).startswith("<|im_start|>system")


def test_plain_text_counts_every_token_but_the_first_and_ends(tmp_path: Path) -> None:
    template = _template(tmp_path, samples.CHATML)
    row = template.text_row("the parcel")
    assert row.weights.tolist() == [0.0] + [1.0] * (len(row) - 1)
    assert template.tokenizer.decode(row.ids.tolist(), skip_special=False) == "the parcel</s>"


def test_the_digest_follows_the_template_and_the_tokenizer(tmp_path: Path) -> None:
    one = _template(tmp_path / "a", samples.CHATML)
    same = _template(tmp_path / "b", samples.CHATML)
    other = _template(tmp_path / "c", samples.INTERNLM3)
    fewer = Template.from_folder(
        samples.tokenizer_folder(tmp_path / "d", samples.CHATML, samples.SPECIAL[:4])
    )
    assert one.digest == same.digest
    assert len({one.digest, other.digest, fewer.digest}) == 3


def test_verify_notices_a_template_that_changes_answers(tmp_path: Path) -> None:
    source = samples.CHATML.replace("+ message['content'] +", "+ message['content'] | upper +")
    template = _template(tmp_path, source)
    with pytest.raises(UserError, match=r"messages\[1\]: the chat template changes the text"):
        template.verify(chat("a", "quiet"))
    _template(tmp_path / "b", samples.CHATML).verify(chat("a", "quiet"))


def test_two_calls_in_one_message_where_the_template_takes_one(tmp_path: Path) -> None:
    template = _template(tmp_path, samples.LLAMA3)
    calls = (ToolCall("weather", {"city": "Ulm"}), ToolCall("weather", {"city": "Bonn"}))
    with pytest.raises(UserError, match="single tool-calls"):
        template.train_rows([message("user", "a"), Message("assistant", (), calls)], [WEATHER])


def test_real_dialogues_train_whole_answers_and_nothing_else(
    tmp_path: Path, shared_data: Path
) -> None:
    shutil.copy(shared_data / "tokenizers" / "internlm_V7_sft.model", tmp_path / "tokenizer.model")
    added = {"103168": "<|im_start|>", "103169": "<|im_end|>"}
    config = {"added_tokens_decoder": {n: {"content": t} for n, t in added.items()}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "internlm3"}')
    template = Template.from_folder(tmp_path)
    roles: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
    lines = (shared_data / "sft" / "sharegpt_zh_1K_format.jsonl").read_text("utf-8").splitlines()
    for line in lines[:60]:
        turns = [message(roles[t["from"]], t["value"]) for t in json.loads(line)["conversations"]]
        template.verify(turns)
        (row,) = template.train_rows(turns)
        answers = [m.text.strip() + "<|im_end|>" for m in turns if m.role == "assistant"]
        learned = [text.strip() for text, weight in template.spans(row) if weight]
        assert learned == answers
