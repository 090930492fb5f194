"""The line to a gateway that runs on this machine: its state, new configurations, its socket.

A Unix socket in a folder that only this user may enter, one a port. A request is one line of JSON,
and so is its answer. `take` gives the listening socket itself to a gateway that takes over: both
then accept from one queue, so that no connection is refused or lost between them.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import UpstreamError, UserError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Json = dict[str, Any]
_MAX_BYTES = 2**24
_ORDER_S = 5.0
"""How long an order may take to come, before others are listened to."""


def path(port: int) -> Path:
    """Where the gateway on a port listens to orders.

    Raises:
        UserError: the folder belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"dialoop-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"`{folder}` is not yours", hint="remove it, or set TMPDIR")
    return folder / f"gateway-{port}.sock"


def ask(port: int, order: Json, timeout_s: float = 60.0) -> tuple[Json, socket.socket | None]:
    """Give an order and wait for the answer; `take` also brings the listening socket.

    Raises:
        UserError: no gateway of this user runs on the port.
        UpstreamError: it does not answer, or could not do it.
    """
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(timeout_s)
        try:
            line.connect(str(path(port)))
        except OSError as error:
            raise UserError(
                f"no gateway of yours runs on port {port}",
                hint="start one with `dialoop gateway JOB.yaml`, or name its port with `--port`",
            ) from error
        try:
            line.sendall(json.dumps(order).encode() + b"\n")
            data, fds, *_ = socket.recv_fds(line, _MAX_BYTES, 1)
            while not data.endswith(b"\n") and (more := line.recv(_MAX_BYTES)):
                data += more
        except OSError as error:
            raise UpstreamError(f"the gateway on port {port} does not answer ({error})") from error
    if not data:
        raise UpstreamError(f"the gateway on port {port} ended before it had answered")
    answer: Json = json.loads(data)
    if "failed" in answer:
        raise UserError(answer["failed"], hint=answer.get("hint"))
    return answer, socket.socket(fileno=fds[0]) if fds else None


class Desk:
    """Where a running gateway takes orders.

    Args:
        port: of the gateway.
        listening: its socket, for `take`.
        obey: does what an order says.
    """

    def __init__(
        self,
        port: int,
        listening: socket.socket,
        obey: Callable[[Json], Awaitable[Json]],
    ) -> None:
        self._path, self._listening, self._obey = path(port), listening, obey
        self._line: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_named = False
        """Whether the path leads here, and not to a successor."""

    def open(self) -> None:
        """Take orders from now on; a gateway that did so before for this port does no more."""
        self._path.unlink(missing_ok=True)
        self._line = socket.socket(socket.AF_UNIX)
        self._line.bind(str(self._path))
        self._line.listen(8)
        self._line.setblocking(False)
        self._is_named = True
        self._task = asyncio.create_task(self._serve(self._line))

    async def close(self) -> None:
        """Take no more orders."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._line:
            self._line.close()
            self._leave()

    def _leave(self) -> None:
        """Give the path up, once."""
        if self._is_named:
            self._is_named = False
            self._path.unlink(missing_ok=True)

    async def _serve(self, line: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(line)
            with client:
                client.setblocking(False)
                with suppress(OSError, ValueError):  # a time-out is an OSError
                    await self._one(client)

    async def _one(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        data = b""
        async with asyncio.timeout(_ORDER_S):
            while not data.endswith(b"\n") and len(data) < _MAX_BYTES:
                more = await loop.sock_recv(client, 2**20)
                if not more:
                    return
                data += more
        order = json.loads(data)
        answer = await self._obey(order)
        if order.get("do") == "drain":
            self._leave()  # before the successor, who waits for the answer, takes the path
        text = json.dumps(answer).encode() + b"\n"
        if order.get("do") == "take" and "failed" not in answer:
            socket.send_fds(client, [text], [self._listening.fileno()])
            return
        await loop.sock_sendall(client, text)
