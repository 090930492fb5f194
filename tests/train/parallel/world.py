"""A few gloo processes for a test module: started once, they run what they are given and answer."""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

SECONDS = 120


class World:
    """Calls functions of a module on every rank; each gets its arguments and nothing else."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What each rank returned.

        Raises:
            AssertionError: a rank raised; carries its traceback.
        """
        for pipe in self._pipes:
            pipe.send((function, args))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(SECONDS), f"rank {rank} does not answer"
            answers.append(pipe.recv())
        for rank, (is_good, answer) in enumerate(answers):
            assert is_good, f"rank {rank}: {answer}"
        return [answer for _, answer in answers]


@contextmanager
def world(size: int, folder: Path) -> Iterator[World]:
    """Processes that have met."""
    context = mp.get_context("spawn")
    ours, processes = [], []
    for rank in range(size):
        mine, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(rank, size, folder, theirs), daemon=True)
        process.start()
        ours.append(mine)
        processes.append(process)
    try:
        yield World(ours)
    finally:
        for pipe in ours:
            pipe.send(None)
        for process in processes:
            process.join(10)
            process.kill()


def _serve(rank: int, size: int, folder: Path, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", rank)):
        os.environ[name] = str(value)  # noqa: TID251 - what a launcher does
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size)
    while (call := pipe.recv()) is not None:
        function, args = call
        try:
            pipe.send((True, function(*args)))
        except Exception:  # noqa: BLE001 - whatever it is, the test shows it
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()
