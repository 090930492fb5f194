"""Keeps an engine's process running: start, readiness, restart with back-off, adoption, the end.

The process runs in a session of its own under `engines.guard`, listens on a port that was claimed
for it, and writes to a log file whose last lines are part of every error about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dialoop.core.env import home, variables
from dialoop.core.errors import MachineError, UpstreamError
from dialoop.core.events import Note
from dialoop.engines import sessions, state
from dialoop.engines.claims import claim_gpus, claim_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from dialoop.core.events import Event
    from dialoop.engines.claims import Claim, Gpu
    from dialoop.engines.external import Launch

_POLL_S = 0.1
_PROBE_S = 0.25
_NUM_LINES = 15
_NUM_NAMED = 5
_TAIL_BYTES = 2**16
_NAMED = re.compile(r"\b[A-Za-z.]*(Error|Exception)\b: .+")
_KEPT_LOGS = 20
_ADOPT_S = 10.0
_MAX_DELAY_S = 4.0


@dataclass(frozen=True, slots=True)
class Program:
    """What is run."""

    engine: str
    python: str
    launch: Callable[[int], Launch]
    """The command for a port; equal but for the port each time."""
    environment: Mapping[str, str]
    """What the engine sees, beside what `launch` adds."""
    gpus: Sequence[Gpu] = ()
    """Those that may be chosen from."""
    num_gpus: int = 0

    @property
    def key(self) -> str:
        """Equal for programs that do the same."""
        launch = self.launch(0)
        facts = [self.engine, self.python, launch.arguments, sorted(launch.environment.items())]
        whole = json.dumps([*facts, sorted(gpu.uuid for gpu in self.gpus), self.num_gpus])
        return hashlib.sha256(whole.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take."""

    start_s: float
    restarts: int
    """Starts in a row that may fail after a crash."""
    orphan_s: float = 60.0
    """So long an engine waits for its owner to be started again."""
    grace_s: float = 15.0
    """So long a stopped engine may take to end; a little more than its guard gives it."""


class Supervisor:
    """One engine's process.

    Args:
        program: what to run.
        probe: serves one token at a URL, or raises an UpstreamError.
        lost: called with the reason each time when a running engine is gone.
        patience: limits.
        emit: receives notes about restarts.
    """

    def __init__(
        self,
        program: Program,
        probe: Callable[[str], Awaitable[None]],
        lost: Callable[[UpstreamError], None],
        patience: Patience,
        emit: Callable[[Event], None],
    ) -> None:
        self._program, self._probe, self._lost = program, probe, lost
        self._patience, self._emit = patience, emit
        self._gpu_claims: list[Claim] = []
        self._port_claim: Claim | None = None
        self._chosen: list[Gpu] = []
        self._guard: subprocess.Popen[bytes] | None = None
        self._state: state.EngineState | None = None
        self._path: Path | None = None
        self._watching: asyncio.Task[None] | None = None
        self._reason = ""
        self.is_up = False
        self.num_restarts = 0
        self.failure: UpstreamError | None = None
        """Why the engine will not be started again."""
        self.has_failed = asyncio.Event()

    @property
    def url(self) -> str:
        """Where the engine listens.

        Raises:
            RuntimeError: it has not started.
        """
        if self._state is None:
            raise RuntimeError("the engine has not started")
        return f"http://127.0.0.1:{self._state.port}"

    @property
    def leader(self) -> sessions.Identity:
        """The leader of the engine's session, its guard.

        Raises:
            RuntimeError: it has not started.
        """
        if self._state is None:
            raise RuntimeError("the engine has not started")
        return self._state.guard

    async def start(self) -> None:
        """Take over an engine that does the same and has lost its owner, or start one.

        Raises:
            MachineError: ports or GPUs are taken.
            UpstreamError: it ended, or served no token in time.
        """
        try:
            await asyncio.to_thread(clear_orphans)
            if not await self._adopt():
                await self._launch()
        except BaseException:
            await self._end()
            self._release()
            raise
        self.is_up = True
        self._watching = asyncio.create_task(self._watch())

    async def kill(self, reason: str) -> None:
        """End a frozen engine; it is started again like one that crashed."""
        self._reason = reason
        await asyncio.to_thread(sessions.end, self.leader, 0)

    async def stop(self) -> None:
        """End the engine and everything it started, and give back what was claimed."""
        if self._watching:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        self.is_up = False
        await self._end()
        self._release()

    async def _adopt(self) -> bool:
        with state.book():
            for path, found in state.states():
                is_lost = found.guard.is_alive() and not found.owner.is_alive()
                if found.key == self._program.key and is_lost:
                    self._path, self._state = path, replace(found, owner=sessions.me())
                    state.write_state(path, self._state)
                    break
            else:
                return False
        try:
            await asyncio.wait_for(self._probe(self.url), _ADOPT_S)
        except (TimeoutError, UpstreamError):
            await self._end()
            return False
        self._emit(Note(f"took over {self._program.engine}, which was still running"))
        return True

    async def _launch(self) -> None:
        if self._program.num_gpus and not self._gpu_claims:
            self._gpu_claims, self._chosen = claim_gpus(
                self._program.gpus, self._program.num_gpus, self._holder()
            )
        self._port_claim, port = claim_port(self._holder())
        launch = self._program.launch(port)
        log = _new_log(self._program.engine)
        self._emit(Note(f"{self._program.engine} writes its log to {log}"))
        self._path = state.folder() / f"{uuid.uuid4().hex[:12]}.json"
        environment = dict(self._program.environment) | dict(launch.environment)
        if self._chosen:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in self._chosen)
        what = {"command": [self._program.python, *launch.arguments], "environment": environment}
        claims = [self._port_claim, *self._gpu_claims]
        command = [sys.executable, "-m", "dialoop.engines.guard", str(self._path)]
        with log.open("ab") as file:
            self._guard = subprocess.Popen(  # noqa: S603, ASYNC220  returns at once
                [*command, str(self._patience.orphan_s)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=variables(),
                pass_fds=[claim.fd for claim in claims],
                start_new_session=True,
            )
        guard = sessions.identify(self._guard.pid)
        if guard is None:
            raise RuntimeError("a child that was not waited for has no entry in /proc")
        self._state = state.EngineState(
            self._program.engine, self._program.key, guard, sessions.me(), port, str(log)
        )
        state.write_state(self._path, self._state)
        if self._guard.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(json.dumps(what).encode())
                self._guard.stdin.close()
        await self._until_ready()

    async def _until_ready(self) -> None:
        began = time.monotonic()
        while True:
            if not self._is_alive():
                raise self._error("ended while it started")
            with contextlib.suppress(UpstreamError, TimeoutError):
                await asyncio.wait_for(self._probe(self.url), self._patience.start_s)
                return
            if time.monotonic() - began > self._patience.start_s:
                raise self._error(
                    f"served no token within {self._patience.start_s:.0f} s",
                    hint="raise `--external.start_s`, or read its log",
                )
            await asyncio.sleep(_PROBE_S)

    async def _watch(self) -> None:
        """Start the engine again whenever it is gone; return when that is given up."""
        while self.failure is None:
            while self._is_alive():  # noqa: ASYNC110  the kernel sets no asyncio.Event
                await asyncio.sleep(_POLL_S)
            self.is_up = False
            error = self._error(self._reason or "has died")
            self._reason = ""
            self._lost(error)
            self.failure = await self._again(error)
        self.has_failed.set()

    async def _again(self, error: UpstreamError) -> UpstreamError | None:
        """Start again; the last error when it was tried too often."""
        for num_failed in range(self._patience.restarts):
            await self._end()
            await asyncio.sleep(min(_MAX_DELAY_S, 0.25 * 2**num_failed))
            self._emit(Note(f"{self._program.engine} is started again", "warning"))
            try:
                await self._launch()
            except (UpstreamError, MachineError) as failed:
                error = UpstreamError(Exception.__str__(failed), hint=failed.hint)
                self._emit(Note(f"that start failed: {error}", "warning"))
            else:
                self.num_restarts += 1
                self.is_up = True
                return None
        return error

    def _is_alive(self) -> bool:
        if self._guard:
            self._guard.poll()  # takes its exit code, so that no dead process is left
        return self._state is not None and self._state.guard.is_alive()

    async def _end(self) -> None:
        """End the session that runs, if any, and forget it."""
        if self._state:
            await asyncio.to_thread(_end_session, self._state.guard, self._patience.grace_s)
        if self._guard:
            await asyncio.to_thread(self._guard.wait)
        self._guard = None
        if self._path:
            self._path.unlink(missing_ok=True)
        if self._port_claim:
            self._port_claim.release()
            self._port_claim = None

    def _release(self) -> None:
        for held in self._gpu_claims:
            held.release()
        self._gpu_claims, self._chosen = [], []

    def _error(self, what: str, hint: str | None = None) -> UpstreamError:
        last = _tail(self._state.log) if self._state else ""
        log = self._state.log if self._state else "nowhere"
        return UpstreamError(
            f"{self._program.engine} {what}; its last lines:\n{last}",
            hint=hint or f"its whole log is {log}",
        )

    def _holder(self) -> str:
        return f"{self._program.engine} of process {os.getpid()}"


def clear_orphans() -> list[str]:
    """Clear away engines whose owner and guard are both gone; guards see to the others.

    Returns:
        the names of those that still ran.
    """
    ended: list[str] = []
    with state.book():
        for path, found in state.states():
            if found.owner.is_alive() or found.guard.is_alive():
                continue
            if sessions.members(found.guard):
                sessions.end(found.guard, 0)
                ended.append(found.engine)
            path.unlink(missing_ok=True)
    return ended


def _end_session(guard: sessions.Identity, grace_s: float) -> None:
    """Ask the guard, which ends its engine; then end what is left of the session."""
    deadline = time.monotonic() + grace_s
    if guard.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(guard.pid, signal.SIGTERM)
    while guard.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    sessions.end(guard, 0)


def _new_log(engine: str) -> Path:
    folder = home() / "engines" / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-_KEPT_LOGS]:
        old.unlink(missing_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return folder / f"{engine}-{stamp}-{uuid.uuid4().hex[:6]}.log"


def _tail(path: str) -> str:
    """The errors that the end of a log names, else its last lines."""
    with open(path, "rb") as file:  # noqa: PTH123
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    named = dict.fromkeys(found[0] for line in lines if (found := _NAMED.search(line)))
    chosen = list(named)[:_NUM_NAMED] or lines
    return "\n".join(f"  {line[:300]}" for line in [*chosen[-_NUM_LINES:], *lines[-1:]])
