"""Key facts of turns without a model: clauses that cover most of what is rare, in few tokens.

A dialogue is cut into clauses, and of these the words that say nothing are left out. Every word
left (in Chinese every pair of signs) is a concept with a weight: rare ones weigh more, and so do
numbers, names and quoted titles, and what the user said. Clauses are taken one after another, each
time the one that adds most weight a token, until the room is full; what is already covered adds
nothing, so that repetitions stay out. That is concept coverage (Gillick and Favre 2009) with the
greedy choice of budgeted submodular maximisation (Lin and Bilmes 2010).
"""

# ruff: noqa: RUF001  full-width signs are Chinese punctuation

from __future__ import annotations

import heapq
import math
import re
from collections import Counter as Tally
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoop.gateway.context.turns import text_of
from dialoop.gateway.context.wording import CHINESE, wording_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dialoop.gateway.context.summarize import Fold
    from dialoop.gateway.context.wording import Wording

Json = dict[str, Any]

ROLE_WEIGHTS = {"user": 1.0, "assistant": 0.8, "tool": 0.6}
QUESTION_WEIGHT = 0.5
"""Of a question against a statement."""
FACT_WEIGHT = 3.0
"""Of numbers, names, members of lists and what stands in quotation marks."""
ADVICE_WEIGHT = 0.6
"""Of all other words that are not the user's: assistants talk much."""
COMMON_WEIGHT = 0.3
"""Of words that are common in any dialogue: the lists beside this file, counted by document in
public instruction sets."""
SELF_WEIGHT = 1.5
"""Of a clause in which users tell of themselves."""
_END = re.compile(r"(?<=[.!?;,:])\s+|(?<=[。！？；，：])|\n+|\s+[\u2013\u2014-]+\s+|\u2014")
_QUOTED = re.compile(r"《[^》]{1,40}》|“[^”]{1,60}”|\"[^\"]{1,60}\"|「[^」]{1,40}」")
_WORD = re.compile(r"[A-Za-z0-9@_$%][\w@.$%'\u2019/-]*")
_HAN = re.compile(r"[\u4e00-\u9fff]+")
_LISTED = re.compile(r"[\u4e00-\u9fff\u00b7]{2,10}(?=、)|(?<=、)[\u4e00-\u9fff\u00b7]{2,10}")
_COUNTED = re.compile(
    r"[二三四五六七八九十百千万两半\d]+[\u4e00-\u9fff]{1,2}|一个?(?:小时|月|年|周|半)"
)
"""Numbers with what they count."""
_SELF = re.compile(
    r"\b(?:I am|I'm|my name|my favou?rite|"
    r"I (?:really )?(?:like|love|enjoy|prefer|want|plan|live|work))\b|"
    r"我叫|我是|我的名字|喜欢|计划|打算|我住|最爱",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"[?？]\s*$")
_FILLER = re.compile(
    "(?!一个?(?:小时|月|年|周|半))(?:我觉得|我认为|你觉得|你认为|你可以|我可以|我会|你有没有|有没有|是不是|能不能|不好意思|没关系|没问题|不客气|不用谢|"
    "谢谢你?的?|感谢你?的?|非常|真的|真是|确实|其实|而且|但是|不过|因为|所以|如果|那么|然后|还有|以及|或者|这个|那个|"
    "这些|那些|一些|一个|一种|什么|怎么样?|如何|可以|应该|能够|已经|正在|听起来|看起来|感觉到?|希望|很高兴|很|也|都|就|还|"
    "的|了|吗|呢|吧|啊|呀|哦|嗯|哈|啦|嘛|和|与|是|在|有|会|要|对|把|被|让|给|到|着|过|地|得|你好|您好|朋友|今天)"
)


@dataclass(slots=True)
class _Clause:
    """A clause that may be taken."""

    order: int
    message: int
    text: str
    concepts: dict[str, float]
    cost: int


class KeyFacts:
    """The default summariser: no model, no chance, the same text for the same turns."""

    async def summarize(self, fold: Fold) -> str:
        """The key facts of all messages of the fold; the old summary is not needed for them."""
        return key_facts(fold.messages, fold.max_tokens, fold.count)


def key_facts(messages: Sequence[Json], max_tokens: int, count: Callable[[str], int]) -> str:
    """What is worth keeping of messages, a line for each of them.

    Args:
        messages: the dialogue's messages; system messages are passed over.
        max_tokens: tokens of the text at most.
        count: tokens of a text.
    """
    wording = wording_of("".join(map(text_of, messages)))
    clauses = list(_clauses(messages, count))
    chosen: list[_Clause] = []
    covered: set[str] = set()
    used = 0
    heap = [(-_gain(clause, covered), clause.order) for clause in clauses]
    heapq.heapify(heap)
    while heap:
        gain, order = heapq.heappop(heap)
        clause = clauses[order]
        now = -_gain(clause, covered)
        if now > gain + 1e-9:  # others covered a part of it since
            if now < 0:
                heapq.heappush(heap, (now, order))
            continue
        if used + clause.cost <= max_tokens:
            chosen.append(clause)
            covered.update(clause.concepts)
            used += clause.cost
    text = _written(chosen, messages, wording)
    while chosen and count(text) > max_tokens:
        chosen.pop()
        text = _written(chosen, messages, wording)
    return text


def _gain(clause: _Clause, covered: set[str]) -> float:
    """Weight that a clause would add, a token."""
    return sum(w for name, w in clause.concepts.items() if name not in covered) / clause.cost


def _clauses(messages: Sequence[Json], count: Callable[[str], int]) -> Iterator[_Clause]:
    found = [
        (number, piece, text, facts)
        for number, message in enumerate(messages)
        if message["role"] in ROLE_WEIGHTS
        for piece, is_first in _pieces(text_of(message))
        if (text := shortened(piece)) and (facts := concepts(piece, is_first=is_first))
    ]
    seen = Tally(name for *_, facts in found for name in facts)
    for order, (number, piece, text, facts) in enumerate(found):
        weight = ROLE_WEIGHTS[messages[number]["role"]]
        is_user = messages[number]["role"] == "user"
        weight *= QUESTION_WEIGHT if _QUESTION.search(piece) else 1.0
        weight *= SELF_WEIGHT if is_user and _SELF.search(piece) else 1.0
        plain = 1.0 if is_user else ADVICE_WEIGHT
        weights = {
            name: weight
            * (fact if fact > 1 else plain * fact)
            * math.log1p(len(found) / seen[name])
            for name, fact in facts.items()
        }
        yield _Clause(order, number, text, weights, count(text) + 2)


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """The clauses of a text, each with whether it begins a sentence."""
    is_first = True
    for piece in _END.split(text):
        if piece:
            yield piece, is_first
            is_first = piece[-1] not in ",;"


def shortened(clause: str) -> str:
    """A clause without words that say nothing; quoted titles stay whole."""
    out: list[str] = []
    end = 0
    for quoted in _QUOTED.finditer(clause):
        out += [_thinned(clause[end : quoted.start()]), quoted[0]]
        end = quoted.end()
    out.append(_thinned(clause[end:]))
    return re.sub(r"\s+", " ", " ".join(out)).strip(" ,.;:!?，。；：！？、~…")


def concepts(clause: str, *, is_first: bool = True) -> dict[str, float]:
    """What a clause speaks of, each with how much of a fact it looks.

    Args:
        clause: its text.
        is_first: whether it begins a sentence, where any word has a capital.
    """
    found: dict[str, float] = {}
    quoted = " ".join(_QUOTED.findall(clause))
    for word in _WORD.finditer(clause):
        name = word[0].casefold().rstrip(".'")
        is_name = word[0][0].isupper() and (word.start() > 0 or not is_first)
        if name in quoted.casefold() or any(sign.isdigit() for sign in name):
            found[name] = FACT_WEIGHT
        elif name not in _words("stop_en") and len(name) > 1:
            usual = COMMON_WEIGHT if name in _words("common_en") else 1.0
            found.setdefault(name, FACT_WEIGHT if is_name else usual)
    facts = " ".join([quoted, *_LISTED.findall(clause), *_COUNTED.findall(clause)])
    for run in _HAN.findall(_FILLER.sub(" ", _QUOTED.sub(" ", clause))):
        found |= {
            pair: COMMON_WEIGHT if pair in _words("common_zh") else 1.0 for pair in _pairs(run)
        }
    for run in _HAN.findall(facts):
        found |= dict.fromkeys(_pairs(run), FACT_WEIGHT)
    return found


def _pairs(run: str) -> list[str]:
    return [run[n : n + 2] for n in range(max(1, len(run) - 1))]


@cache
def _words(name: str) -> frozenset[str]:
    file = Path(__file__).with_name(f"{name}.txt")
    return frozenset(file.read_text(encoding="utf-8").split())


def _thinned(text: str) -> str:
    if _HAN.search(text):
        return _FILLER.sub("", text)
    kept = [
        word for word in text.split() if word.strip(".,;:!?()").casefold() not in _words("stop_en")
    ]
    return " ".join(kept)


def _written(chosen: Sequence[_Clause], messages: Sequence[Json], wording: Wording) -> str:
    """The clauses in the dialogue's order; who speaks is named where it changes."""
    names = {"user": wording.user, "tool": wording.tool}
    mark = "；" if wording is CHINESE else "; "
    by_message: dict[int, list[str]] = {}
    for clause in sorted(chosen, key=lambda item: item.order):
        by_message.setdefault(clause.message, []).append(clause.text)
    lines: list[str] = []
    last = ""
    for number, texts in by_message.items():
        name = names.get(messages[number]["role"], wording.assistant)
        lines.append((f"{name}: " if name != last else "") + mark.join(texts))
        last = name
    return "\n".join(lines)
