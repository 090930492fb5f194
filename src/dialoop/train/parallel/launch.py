"""Start a job's processes on this machine, pass on what they report, end all when one ends.

The processes are started and watched by torch's elastic agent (torch.distributed.launcher), which
also lets machines meet. Each process connects to a socket: the leader sends its events, every one
its error, and each ends itself when this process is gone. What they print goes to files, whose end
is told when one dies.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager
from multiprocessing.connection import Listener
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import TYPE_CHECKING

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dialoop.core import jobfile
from dialoop.core.errors import DialoopError, MachineError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from multiprocessing.connection import Connection

    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from dialoop.core.events import Event
    from dialoop.train.spec import TrainJob, TrainResult

LAST_WORDS = 12
"""Lines of a dead process's output that are told."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def launch(job: TrainJob, emit: Callable[[Event], None]) -> TrainResult:
    """Run a job on `gpus` processes here, together with those of other machines.

    Raises:
        DialoopError: what one of the processes raised.
        MachineError: a process died; names its rank and its last words.
        KeyboardInterrupt: the job was interrupted; all processes are gone.
    """
    folder = Path(tempfile.mkdtemp(prefix="dialoop-"))  # readable by this user alone
    try:
        path = folder / "job.yaml"
        path.write_text(jobfile.dump(job), encoding="utf-8")
        mail = Mailbox(folder / "socket", emit)
        with mail, _own_signals():
            _run(job, folder, mail)
        assert mail.result is not None, "every process sends one before it ends well"  # noqa: S101
        return mail.result
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(job: TrainJob, folder: Path, mail: Mailbox) -> None:
    is_alone = job.nodes == 1
    config = LaunchConfig(
        min_nodes=job.nodes,
        max_nodes=job.nodes,
        nproc_per_node=job.gpus,
        run_id="dialoop",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0" if is_alone else job.rendezvous,
        local_addr="localhost" if is_alone else None,
        max_restarts=0,
        monitor_interval=0.2,
        shutdown_timeout=10,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs"), redirects=Std.ALL),
    )
    words = ["-m", "dialoop.train.parallel.worker", str(folder / "job.yaml"), str(mail.address)]
    try:
        elastic_launch(config, sys.executable)(*words)
    except ChildFailedError as error:
        if mail.error is not None:
            raise mail.error from error
        raise _death(error.failures, job.gpus * job.nodes, folder) from error
    except SignalException as error:
        raise KeyboardInterrupt from error


class Mailbox:
    """Receives what processes send; use it as a context manager.

    Args:
        address: of the socket.
        emit: receives the leader's events.
    """

    def __init__(self, address: Path, emit: Callable[[Event], None]) -> None:
        self.address, self._emit = address, emit
        self.result: TrainResult | None = None
        self.error: DialoopError | None = None
        self._listener = Listener(str(address), "AF_UNIX", backlog=64)
        self._readers: list[Thread] = []

    def __enter__(self) -> Mailbox:
        """Begin to listen."""
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Read to the end what was sent; the processes are gone."""
        for reader in self._readers:
            reader.join(5)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:  # closed: nobody else comes
                return
            self._readers.append(Thread(target=self._read, args=(connection,), daemon=True))
            self._readers[-1].start()

    def _read(self, connection: Connection) -> None:
        while True:
            try:
                kind, content = connection.recv()
            except (EOFError, OSError):
                return
            match kind:
                case "event":
                    self._emit(content)
                case "result":
                    self.result = content
                case "error":
                    self.error = self.error or content


def _death(failures: dict[int, ProcessFailure], size: int, folder: Path) -> MachineError:
    """The process that died first: by a signal that was not ours, else the earliest."""

    def order(rank: int) -> tuple[bool, int]:
        code = failures[rank].exitcode
        return code >= 0 or code == -signal.SIGTERM, failures[rank].timestamp

    rank = min(failures, key=order)
    failure = failures[rank]
    code = failure.exitcode
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    logs = sorted(folder.rglob(f"attempt_*/{failure.local_rank}/stderr.log"))
    lines = logs[-1].read_text(errors="replace").splitlines() if logs else []
    said = "\n".join(lines[-LAST_WORDS:])
    return MachineError(
        f"rank {rank} of {size} ended {how}; its last words: {said or '(none)'}",
        hint="a process ended by SIGKILL ran out of memory, most often; go on with --resume",
    )


@contextmanager
def _own_signals() -> Generator[None]:
    """Give the agent's signal handlers back afterwards, and keep its log quiet meanwhile."""
    log = logging.getLogger("torch.distributed.elastic")
    level = log.level
    log.setLevel(logging.CRITICAL)
    is_main = current_thread() is main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        log.setLevel(level)
        for number, handler in before.items():
            if is_main and handler is not None:
                signal.signal(number, handler)


def end_with_parent(connection: Connection) -> None:
    """End this process at once when the one that started it is gone, whatever it is doing."""

    def watch() -> None:
        try:
            connection.recv()
        except (EOFError, OSError):
            os._exit(1)

    Thread(target=watch, daemon=True).start()
