"""Tokens per second of a live server by the number of clients at once; JSON on stdout.

Usage: python benchmarks/serve_concurrency.py MODEL [--engine openvino] [--clients 1 8 32]

The server runs in this process, its engine in a worker, and the clients are the official `openai`
ones, all on the same machine. Prompts differ in their first words, so that no cache helps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from typing import Any

import openai

from dialoop.core.events import ignore
from dialoop.serve.run import running
from dialoop.serve.spec import ServeJob


async def one_client(client: openai.AsyncOpenAI, model: str, number: int, tokens: int) -> Any:
    """One streamed answer: tokens, and seconds to the first text."""
    began = time.monotonic()
    first = 0.0
    count = 0
    question = f"{number}: describe a day in the life of worker {number} at a lighthouse."
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.monotonic() - began
        if chunk.usage:
            count = chunk.usage.completion_tokens
    return count, first


async def measure(url: str, model: str, clients: int, tokens: int, numbers: Any) -> dict[str, Any]:
    """All clients at once, to the end."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        began = time.monotonic()
        work = [one_client(client, model, next(numbers), tokens) for _ in range(clients)]
        found = await asyncio.gather(*work)
        seconds = time.monotonic() - began
    total = sum(count for count, _ in found)
    return {
        "clients": clients,
        "tokens": total,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(total / seconds, 1),
        "median_first_text_s": round(statistics.median(first for _, first in found), 3),
    }


async def main(options: argparse.Namespace) -> None:
    """Serve, warm up, measure each number of clients `--repeat` times, print the median of each."""
    job = ServeJob(model=options.model, engine=options.engine, port=0)
    numbers = iter(range(10**6))
    async with running(job, ignore) as server:
        await measure(server.url, server.model, 2, 8, numbers)
        rows = []
        for clients in options.clients:
            runs = [
                await measure(server.url, server.model, clients, options.tokens, numbers)
                for _ in range(options.repeat)
            ]
            rows.append(sorted(runs, key=lambda run: run["tokens_per_s"])[len(runs) // 2])
        info = server.engine.info
    facts = {"model": server.model, "engine": info.engine, "dtype": info.dtype}
    facts |= {"threads": info.threads, "load": os.getloadavg()[0], "runs": options.repeat}
    json.dump(facts | {"results": rows}, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    asyncio.run(main(parser.parse_args()))
