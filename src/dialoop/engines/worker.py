"""The engine's own process: reads frames, steps a backend, writes frames.

Run as `python -m dialoop.engines.worker FD`, where FD is one end of a socket pair and
`engines.process` holds the other. The first frame is the WorkerJob. The main thread steps; a second
thread reads, so that aborts are seen between steps, and ends the process when the parent is gone.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from dialoop.core.errors import DialoopError
from dialoop.engines import Delta, Request, Sampling
from dialoop.engines.wire import Frame, encode, read

if TYPE_CHECKING:
    from typing import BinaryIO

    from dialoop.engines import EngineInfo
    from dialoop.models.spec import Dtype

TICK_S = 1.0
"""A working backend says so at least this often, so that frozen can be told from busy."""


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """What a worker loads; everything is resolved, nothing is `auto`."""

    engine: str
    folder: str
    """The checkpoint, or the OpenVINO model made of it."""
    max_length: int
    dtype: Dtype
    device: str
    threads: int
    max_concurrent: int
    cache_gb: int
    """For keys and values, in an engine that sets memory aside for them."""
    adapter: str | None = None
    """A PEFT adapter folder that is applied to the model."""


class Backend(Protocol):
    """What an engine file implements; called from one thread only."""

    info: EngineInfo

    def add(self, key: int, request: Request) -> None:
        """Take a request in; it is worked on from the next step."""
        ...

    def abort(self, key: int) -> None:
        """Forget a request; an unknown key is one that has ended, which is fine."""
        ...

    def step(self) -> list[tuple[int, Delta | DialoopError]]:
        """Do one step for all requests; what came of it, by key. Only called with work.

        An error ends its request, and no other.
        """
        ...

    def has_work(self) -> bool:
        """Whether any request is open."""
        ...


def request_frame(key: int, request: Request) -> Frame:
    """The frame that adds a request."""
    return {"do": "add", "key": key, **asdict(request)}


def main(fd: int) -> None:
    """Serve the parent at the other end of `fd` until it goes."""
    link = socket.socket(fileno=fd)
    # Libraries print banners to stdout; the parent's stdout is data.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    incoming = link.makefile("rb")
    first = read(incoming)
    if first is None:
        return
    try:
        backend = import_module(f"dialoop.engines.{first['engine']}").open_backend(
            WorkerJob(**first)
        )
        _serve_one_token(backend)
    except DialoopError as error:
        link.sendall(encode(_failure(error)))
        return
    link.sendall(encode({"is": "ready", "info": asdict(backend.info)}))
    inbox: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(incoming, inbox), daemon=True).start()
    _loop(backend, link, inbox)


def _failure(error: DialoopError) -> Frame:
    text = Exception.__str__(error)
    return {"is": "failed", "kind": type(error).__name__, "message": text, "hint": error.hint}


def _serve_one_token(backend: Backend) -> None:
    backend.add(0, Request((1,), Sampling(max_tokens=1, temperature=0.0)))
    while backend.has_work():
        for _, item in backend.step():
            if isinstance(item, DialoopError):
                raise item


def _listen(incoming: BinaryIO, inbox: queue.SimpleQueue[Frame]) -> None:
    while (frame := read(incoming)) is not None:
        inbox.put(frame)
    os._exit(0)  # the parent is gone: nobody is left to answer to


def _loop(backend: Backend, link: socket.socket, inbox: queue.SimpleQueue[Frame]) -> None:
    said = time.monotonic()
    while True:
        frames = _take(inbox, wait=not backend.has_work())
        refused = [failed for frame in frames if (failed := _obey(backend, frame))]
        out = b"".join(encode(frame) for frame in refused)
        if backend.has_work():
            out += b"".join(encode(_step_frame(key, item)) for key, item in backend.step())
        if not out and time.monotonic() - said > TICK_S:
            out = encode({"is": "tick"})
        if out:
            link.sendall(out)
            said = time.monotonic()


def _take(inbox: queue.SimpleQueue[Frame], *, wait: bool) -> list[Frame]:
    frames = [inbox.get()] if wait else []
    while not inbox.empty():
        frames.append(inbox.get())
    return frames


def _obey(backend: Backend, frame: Frame) -> Frame | None:
    key: int = frame["key"]
    if frame["do"] == "abort":
        backend.abort(key)
        return None
    try:
        backend.add(key, _request(frame))
    except DialoopError as error:
        return _refusal(key, error)
    return None


def _request(frame: Frame) -> Request:
    sampling: dict[str, Any] = frame["sampling"]
    return Request(tuple(frame["prompt_ids"]), Sampling(**sampling), tuple(frame["stop_ids"]))


def _step_frame(key: int, item: Delta | DialoopError) -> Frame:
    if isinstance(item, DialoopError):
        return _refusal(key, item)
    return {"is": "delta", "key": key, "ids": item.ids, "finish": item.finish}


def _refusal(key: int, error: DialoopError) -> Frame:
    return _failure(error) | {"is": "refused", "key": key}


if __name__ == "__main__":
    main(int(sys.argv[1]))
