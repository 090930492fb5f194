"""What keeping conversations on their engine is worth: hits of a simulated prefix cache.

Usage: python -m benchmarks.gateway.affinity --peers dialoop sglang-router

Conversations of several turns go on side by side, in an order that chance draws anew each round.
Each engine can keep `--room` times its share of all their tokens, the least recently used going
first: with 1.25 the conversations fit into the engines together, and into none alone, which is how
busy engines are. What is gained depends on it and on the number of engines: with a large room, or
few engines, round-robin finds old turns everywhere. `ratio_of_best` is what no routing can exceed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from benchmarks.gateway import results
from benchmarks.gateway.engine import answer
from benchmarks.gateway.faults import Scene, staged
from benchmarks.gateway.load import Client
from benchmarks.gateway.peers import PEERS

if TYPE_CHECKING:
    from benchmarks.gateway.results import Result

Messages = list[dict[str, str]]
NUM_CONVERSATIONS = 64
NUM_TURNS = 10
QUESTION_CHARS = 400
ANSWER_TOKENS = 100
AT_ONCE = 8


def turn(conversation: int, number: int) -> str:
    """A question, unlike those of other conversations and turns."""
    return f"Conversation {conversation}, question {number}: ".ljust(QUESTION_CHARS, "x")


def all_tokens() -> int:
    """Tokens of all conversations at their end, as the engines count."""
    chars = QUESTION_CHARS + len(answer(ANSWER_TOKENS))
    return NUM_CONVERSATIONS * NUM_TURNS * chars // 4


async def hit_rate(scene: Scene, room: float) -> float:
    """Share of the prompts' tokens that the engines had in their caches."""
    scene.behave(cache_tokens=int(room * all_tokens() / len(scene.engines)))
    told: list[Messages] = [[] for _ in range(NUM_CONVERSATIONS)]
    chance = random.Random(7)  # noqa: S311  an order that can be repeated
    for number in range(NUM_TURNS):
        order = list(range(NUM_CONVERSATIONS))
        chance.shuffle(order)
        hands = [order[first::AT_ONCE] for first in range(AT_ONCE)]
        await asyncio.gather(*(_ask_all(scene, told, hand, number) for hand in hands))
    counts = [engine.report()["counts"] for engine in scene.engines]
    cached = sum(count.get("cached_tokens", 0) for count in counts)
    return cached / sum(count.get("prompt_tokens", 0) for count in counts)


async def _ask_all(scene: Scene, told: list[Messages], hand: list[int], number: int) -> None:
    client = Client(scene.target.address)
    for conversation in hand:
        messages = told[conversation]
        messages.append({"role": "user", "content": turn(conversation, number)})
        reply = await client.ask(scene.target.asking(messages))
        if reply.status != 200:
            raise RuntimeError(f"status {reply.status}: {reply.body[:200]!r}")
        messages.append({"role": "assistant", "content": answer(ANSWER_TOKENS)})
    client.close()


def compare(who: str, folder: Path, num_engines: int, room: float) -> list[Result]:
    """One gateway, round-robin and affine; `best` is one engine that forgets nothing."""
    rates: dict[str, float] = {}
    for name, routing, count, space in (
        ("round_robin", "round_robin", num_engines, room),
        ("affinity", "affinity", num_engines, room),
        ("best", "affinity", 1, 10),
    ):
        settings = {"routing": routing}
        with staged(who, folder, num_engines=count, settings=settings) as scene:
            asked = replace(scene, target=replace(scene.target, max_tokens=ANSWER_TOKENS))
            rates[name] = uvloop.run(hit_rate(asked, space))
    how = f"{NUM_CONVERSATIONS} conversations of {NUM_TURNS} turns, {num_engines} engines, each "
    how += f"with room for {room:g} of its share of the tokens"
    ratio = rates["affinity"] / rates["round_robin"]
    most = rates["best"] / rates["round_robin"]
    bar = ">= 3" if who == "dialoop" and room < 2 else ""
    where = f"{num_engines}_engines_room_{room:g}"
    shares = [
        results.result(f"hits_{where}_{name}", who, rate, "share", how)
        for name, rate in rates.items()
    ]
    return [
        *shares,
        results.result(f"hits_{where}_ratio_of_best", who, most, "ratio", how),
        results.result(f"hits_{where}_ratio", who, ratio, "ratio", how, bar),
    ]


def main() -> None:
    """Compare on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [name for name in PEERS if name.endswith("router") or name == "dialoop"]
    parser.add_argument("--peers", nargs="+", choices=known, default=["sglang-router"])
    parser.add_argument("--engines", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--room", type=float, nargs="+", default=[1.25, 4])
    parser.add_argument("--folder", type=Path, help="of the peers' environments; kept")
    parser.add_argument("--out", type=Path, help="the JSON file")
    options = parser.parse_args()
    found: list[Result] = []
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for who in options.peers:
            for num_engines, room in itertools.product(options.engines, options.room):
                found += compare(who, folder, num_engines, room)
    print("\n".join(map(results.line, found)))
    if options.out:
        results.write(options.out, found)


if __name__ == "__main__":
    main()
