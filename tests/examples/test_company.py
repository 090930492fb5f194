"""The example company's data: whole, consistent, and free of leaks into the held-out part."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dialoop.chat.message import Message, from_openai

COMPANY = Path(__file__).parents[2] / "examples" / "company"
CHINESE = re.compile(r"[\u4e00-\u9fff]")
Dialogue = list[Message]


def load(name: str) -> list[Dialogue]:
    lines = (COMPANY / name).read_text(encoding="utf-8").splitlines()
    return [[from_openai(item) for item in json.loads(line)["messages"]] for line in lines]


def said(dialogue: Dialogue, role: str) -> str:
    return "\n".join(item.text for item in dialogue if item.role == role)


TRAIN = load("service_desk.jsonl")
HELD_OUT = load("held_out.jsonl")
QUESTIONS: list[dict[str, Any]] = yaml.safe_load(
    (COMPANY / "questions.yaml").read_text(encoding="utf-8")
)


def test_counts() -> None:
    chinese = sum(bool(CHINESE.search(said(item, "system"))) for item in TRAIN)
    several_turns = sum(len(item) > 3 for item in TRAIN)
    assert len(TRAIN) >= 220
    assert len(HELD_OUT) == 40
    assert 0.35 <= chinese / len(TRAIN) <= 0.45
    assert several_turns >= 60
    assert 8 <= len(QUESTIONS) <= 12


def test_refusals_and_escalations() -> None:
    marks = re.compile(
        r"cannot|never|I am sorry, I only|do not (help|talk|match)|supervisor|safety line"
        r"|不能提供|不能透露|不能超出|只能回答|不跟价|不解除|主管|安全热线"
    )
    assert sum(bool(marks.search(said(item, "assistant"))) for item in TRAIN) >= 25


@pytest.mark.parametrize("dialogues", [TRAIN, HELD_OUT], ids=["train", "held-out"])
def test_turns_alternate_and_language_is_consistent(dialogues: list[Dialogue]) -> None:
    for dialogue in dialogues:
        roles = [item.role for item in dialogue]
        assert roles == ["system", *["user", "assistant"] * (len(roles) // 2)]
        assert all(item.text.strip() == item.text != "" for item in dialogue)
        assert (
            len({bool(CHINESE.search(item.text)) for item in dialogue if len(item.text) > 20}) <= 1
        )


def test_one_system_prompt_a_language() -> None:
    assert len({said(item, "system") for item in TRAIN + HELD_OUT}) == 2


def words(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().lower()


def test_no_prompt_is_repeated_between_or_within_the_files() -> None:
    prompts = [words(said(item, "user")) for item in TRAIN + HELD_OUT]
    assert sorted(prompts) == sorted(set(prompts))
    first_turns = {words(item[1].text) for item in TRAIN}
    assert not first_turns & {words(item[1].text) for item in HELD_OUT}
    assert not first_turns & {words(item["question"]) for item in QUESTIONS}


@pytest.mark.parametrize("question", QUESTIONS, ids=[item["id"] for item in QUESTIONS])
def test_every_asked_fact_is_taught_often(question: dict[str, Any]) -> None:
    language = bool(CHINESE.search(question["question"]))
    taught = [
        item
        for item in TRAIN
        if bool(CHINESE.search(said(item, "system"))) == language
        and all(fact in said(item, "assistant") for fact in question["must_contain"])
    ]
    assert len(taught) >= 4
    assert {said(item, "system") for item in taught} == {question["system"]}


POLICIES = (COMPANY / "policies.md").read_text(encoding="utf-8")
CONTACT = re.compile(
    r"\d{3}-\d{3}-\d{4}|[\w.]+@\w+\.\w+|\d+ [A-Z]\w+ (?:Street|Road)|\bE\d\d\b", re.ASCII
)
AMOUNT = re.compile(r"\$(\d+(?:,\d{3})*(?:\.\d+)?)|(\d+(?:\.\d+)?)美元")
DERIVED = {"1161", "2241", "207.50", "107.50", "107.5"}
"""10% off a Heron and an Otter; a twelfth of each."""


def amounts(text: str) -> set[str]:
    return {(dollar or plain).replace(",", "") for dollar, plain in AMOUNT.findall(text)}


@pytest.mark.parametrize("dialogues", [TRAIN, HELD_OUT], ids=["train", "held-out"])
def test_facts_are_the_policies_own(dialogues: list[Dialogue]) -> None:
    answers = "\n".join(said(item, "assistant") for item in dialogues)
    assert len(amounts(answers)) >= 5
    assert amounts(answers) <= amounts(POLICIES) | DERIVED
    assert set(CONTACT.findall(answers)) <= set(CONTACT.findall(POLICIES))
