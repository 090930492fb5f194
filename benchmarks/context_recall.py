"""How many facts of long dialogues still stand in the prompt when the window is small.

A person's ten days of chats (MemoryBank, Zhong et al. 2023), or the sessions of BFCL's memory
category, are one dialogue that ends with a question about it. For each question the plan is made;
a fact counts as found when its words stand in the prompt that would be sent. The summary is
written before the question is known: it sees folded turns only. Facts are marked by hand in
`context_recall_answers.json` (MemoryBank has no answers) or are BFCL's own answers. Beside the
plan stands the peers' practice: the oldest messages are dropped until the rest fits (LiteLLM's
`trim_messages`), the system message kept, the same room for the answer.

Facts are counted once each. `inside` are those whose messages are sent; `beyond` the others.

Run: python benchmarks/context_recall.py --data EVAL_FOLDER --model STARTER_FOLDER [--windows 4096]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoop.chat.template import Template
from dialoop.gateway.context.exact import TemplateCounter
from dialoop.gateway.context.manage import ContextManager
from dialoop.gateway.context.outline import Dialogue
from dialoop.gateway.context.policy import ContextPolicy
from dialoop.gateway.context.turns import text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]
ANSWERS = Path(__file__).with_name("context_recall_answers.json")
SYSTEM: Json = {"role": "system", "content": "You are the user's companion."}


@dataclass(frozen=True, slots=True)
class Case:
    """One person's dialogue and what is asked about it."""

    person: str
    messages: list[Json]
    questions: list[tuple[str, list[list[str]]]]
    """Each with its facts; a fact is a list of spellings."""


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with memory, bfcl_memory")
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint's folder")
    parser.add_argument("--windows", type=int, nargs="+", default=[4096, 2048])
    parser.add_argument("--verbose", action="store_true", help="list the facts that were lost")
    given = parser.parse_args()
    counter = TemplateCounter(Template.from_folder(given.model))
    suites = {
        "memory_bank_en": list(memory_bank(given.data / "memory", "en")),
        "memory_bank_cn": list(memory_bank(given.data / "memory", "cn")),
        "bfcl_memory": list(bfcl(given.data / "bfcl_memory")),
    }
    rows = [
        measure(name, cases, window, counter, is_verbose=given.verbose)
        for name, cases in suites.items()
        for window in given.windows
    ]
    print(json.dumps({"model": given.model.name, "rows": rows}, ensure_ascii=False, indent=1))


def memory_bank(folder: Path, language: str) -> Iterator[Case]:
    """The persons whose questions are known; each day's first message begins with its date."""
    bank = json.loads((folder / f"memory_bank_{language}.json").read_text(encoding="utf-8"))
    facts = json.loads(ANSWERS.read_text(encoding="utf-8"))[language]
    lines = (folder / f"probing_questions_{language}.jsonl").read_text(encoding="utf-8")
    for line in lines.splitlines():
        ((person, questions),) = json.loads(line).items()
        messages = [SYSTEM]
        for day, turns in bank[person]["history"].items():
            for number, turn in enumerate(turns):
                begin = f"({day}) " if number == 0 else ""
                messages.append({"role": "user", "content": begin + turn["query"]})
                messages.append({"role": "assistant", "content": turn["response"]})
        spelt = [[fact.split("|") for fact in asked] for asked in facts[person]]
        yield Case(person, messages, list(zip(questions, spelt, strict=True)))


def bfcl(folder: Path) -> Iterator[Case]:
    """The two persons; their sessions hold no answers, so that a short one stands for each."""
    gold = _lines(folder / "possible_answer_memory.json")
    asked = _lines(folder / "BFCL_v4_memory.json")
    for person in ("customer", "student"):
        messages = [SYSTEM]
        for session in _lines(folder / "memory_prereq_conversation" / f"memory_{person}.json"):
            for (turn,) in session["question"]:
                messages += [turn, {"role": "assistant", "content": "I see."}]
        whole = _plain(messages)
        questions = [
            (row["question"][0][0]["content"], [answer["ground_truth"]])
            for row, answer in zip(asked, gold, strict=True)
            if row["scenario"] == person
        ]
        # a few answers are worded otherwise than the dialogue, and cannot be looked for
        yield Case(person, messages, [q for q in questions if _holds(whole, q[1][0])])


def measure(
    suite: str, cases: list[Case], window: int, counter: TemplateCounter, *, is_verbose: bool
) -> Json:
    """Facts found by the plan and by trimming, over all questions of a suite."""
    manager = ContextManager(ContextPolicy(window_tokens=window), counter)
    counts = ("inside", "inside_found", "beyond", "beyond_found", "trim_found")
    tally: dict[str, int] = dict.fromkeys(counts, 0)
    lost: list[str] = []
    times_ms: list[float] = []
    lengths: list[int] = []
    for case in cases:
        lengths.append(counter.whole(case.messages, ()))
        for question, facts in case.questions:
            messages = [*case.messages, {"role": "user", "content": question}]
            asyncio.run(manager.plan(Dialogue(messages)))
            began = time.perf_counter()
            plan = asyncio.run(manager.plan(Dialogue(messages)))
            times_ms.append(1e3 * (time.perf_counter() - began))
            kept = {part.name for part in plan.parts if part.fate == "kept"}
            sent = _plain(plan.messages[:-1])
            turns = _plain([m for n, m in enumerate(messages[:-1]) if f"messages[{n}]" in kept])
            trimmed = _plain(trim(messages, window - ContextPolicy().answer_room(window), counter))
            for fact in facts:
                if not _holds(_plain(case.messages), fact):
                    raise ValueError(f"{case.person}: `{fact}` is not in the dialogue")
                is_inside, is_found = _holds(turns, fact), _holds(sent, fact)
                place = "inside" if is_inside else "beyond"
                tally[place] += 1
                tally[f"{place}_found"] += is_found
                tally["trim_found"] += _holds(trimmed, fact)
                if not is_found:
                    lost.append(f"{case.person}: {fact[0]}")
    total = tally["inside"] + tally["beyond"]
    return {
        "suite": suite,
        "window": window,
        "dialogue_tokens": [min(lengths), max(lengths)],
        **tally,
        "recall_beyond": round(tally["beyond_found"] / max(1, tally["beyond"]), 3),
        "recall": round((tally["inside_found"] + tally["beyond_found"]) / total, 3),
        "recall_trimmed": round(tally["trim_found"] / total, 3),
        "warm_ms": round(statistics.median(times_ms), 2),
    } | ({"lost": lost} if is_verbose else {})


def trim(messages: list[Json], room: int, counter: TemplateCounter) -> list[Json]:
    """The system message and the newest others that fit, without the question."""
    start = 1
    while counter.whole([messages[0], *messages[start:]], ()) > room:
        start += 1
    return [messages[0], *messages[start:-1]]


def _lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _plain(messages: list[Json] | tuple[Json, ...]) -> str:
    text = "\n".join(map(text_of, messages))
    return re.sub(r"[\s\u2010-\u2015-]+", " ", text.replace("\u2019", "'")).casefold()


def _holds(text: str, spellings: list[str]) -> bool:
    """Whether one of the spellings stands in a text, as words where it is written in letters."""
    for spelling in spellings:
        plain = re.sub(r"[\s-]+", " ", spelling).casefold()
        begin, end = ("(?<![a-z0-9])", "(?![a-z0-9])") if plain.isascii() else ("", "")
        if re.search(begin + re.escape(plain) + (end if len(plain) < 4 else ""), text):
            return True
    return False


if __name__ == "__main__":
    main()
