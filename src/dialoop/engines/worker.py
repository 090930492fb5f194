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
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from dialoop.core.errors import DialoopError, UserError
from dialoop.engines import Delta, Request, Sampling, TokenLogprob
from dialoop.engines.wire import Frame, encode, read

if TYPE_CHECKING:
    from typing import BinaryIO

    from dialoop.engines import EngineInfo, Task
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
    adapters: dict[str, str] = field(default_factory=dict[str, str])
    """PEFT adapter folders that requests may ask for, by name."""
    max_adapters: int = 4
    """Adapters that are ready at once, in an engine that loads the model anew for each."""
    task: Task = "generate"
    prefix_tokens: int = 0
    """Tokens of earlier prompts and answers that are kept, in an engine that counts them."""


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

    def load_adapter(self, name: str, folder: str) -> None:
        """Make an adapter ready under a name that is not in use.

        Raises:
            DialoopError: it cannot be applied to this model.
        """
        ...

    def unload_adapter(self, name: str) -> list[int]:
        """Forget an adapter; the keys of its open requests, which have ended with it."""
        ...


def request_frame(request: Request) -> Frame:
    """The frame that adds a request, but for its key."""
    return {"do": "add", **asdict(request)}


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
        out = b"".join(encode(said) for frame in frames for said in _obey(backend, frame))
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


def _obey(backend: Backend, frame: Frame) -> list[Frame]:
    """Do what a frame says; the frames that answer it at once."""
    key: int = frame["key"]
    try:
        match frame["do"]:
            case "abort":
                backend.abort(key)
            case "add":
                backend.add(key, _request(frame))
            case "load":
                backend.load_adapter(frame["name"], frame["folder"])
                return [_step_frame(key, Delta((), "stop"))]
            case _:
                gone = UserError(f"adapter `{frame['name']}` was unloaded")
                ended = backend.unload_adapter(frame["name"])
                return [
                    _step_frame(key, Delta((), "stop")),
                    *[_refusal(one, gone) for one in ended],
                ]
    except DialoopError as error:
        return [_refusal(key, error)]
    return []


def _request(frame: Frame) -> Request:
    sampling: dict[str, Any] = frame["sampling"]
    bias = tuple((token, value) for token, value in sampling.pop("logit_bias"))
    return Request(
        tuple(frame["prompt_ids"]),
        Sampling(**sampling, logit_bias=bias),
        tuple(frame["stop_ids"]),
        frame["schema"],
        frame["adapter"],
        frame["second"],
    )


def _step_frame(key: int, item: Delta | DialoopError) -> Frame:
    if isinstance(item, DialoopError):
        return _refusal(key, item)
    frame = {"is": "delta", "key": key, "ids": item.ids, "finish": item.finish}
    if item.logprobs:
        frame["logprobs"] = [(one.logprob, one.top) for one in item.logprobs]
    if item.vector:
        frame["vector"] = item.vector
    return frame


def delta(frame: Frame) -> Delta:
    """What a delta's frame says."""
    told = [
        TokenLogprob(logprob, tuple((token, value) for token, value in top))
        for logprob, top in frame.get("logprobs", ())
    ]
    return Delta(tuple(frame["ids"]), frame["finish"], tuple(told), tuple(frame.get("vector", ())))


def _refusal(key: int, error: DialoopError) -> Frame:
    return _failure(error) | {"is": "refused", "key": key}


if __name__ == "__main__":
    main(int(sys.argv[1]))
