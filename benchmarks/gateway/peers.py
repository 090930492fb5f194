"""The gateways that are measured, each in an environment of its own.

LiteLLM 1.106.12 is the latest whose `proxy` extra installs: later ones pin parts that the package
index does not have. The router of vLLM's production-stack is not on the index; `vllm-router` there
is another program, a fork of SGLang's, which is measured under that name.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gateway.engine import MODEL, on_cpu

from dialoop.core.env import isolated, variables

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

HERE = Path(__file__).parent
KEY = "sk-benchmark"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a peer is started with."""

    python: str
    """The interpreter of its environment."""
    port: int
    engines: Sequence[str]
    """URLs, without `/v1`."""
    folder: Path
    """Where it may put files."""
    settings: Mapping[str, object]
    """Fields of our gateway's job; others heed `routing` at most."""

    @property
    def bin(self) -> Path:
        """Where its commands are."""
        return Path(self.python).parent


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway: how it is installed and started."""

    command: Callable[[Setting], list[str]]
    packages: tuple[str, ...] = ()
    """None: it runs in the environment of this program."""
    key: Callable[[Setting], str] = lambda _: ""
    """Gets a key from it, before it is started."""
    variables: Mapping[str, str] = field(default_factory=dict[str, str])


def _script(name: str) -> Callable[[Setting], list[str]]:
    return lambda at: [at.python, str(HERE / name), str(at.port), at.engines[0]]


def _litellm(at: Setting) -> list[str]:
    models = [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"openai/{MODEL}",
                "api_base": f"{url}/v1",
                "api_key": "none",
            },
        }
        for url in at.engines
    ]
    document = {"model_list": models, "general_settings": {"master_key": KEY}}
    document |= {"router_settings": {"num_retries": 2}}
    path = at.folder / "litellm.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    options = ["--host", "127.0.0.1", "--port", str(at.port), "--num_workers", "1"]
    return [str(at.bin / "litellm"), "--config", str(path), *options, "--telemetry", "False"]


def _rust(module: str) -> Callable[[Setting], list[str]]:
    """SGLang's router and vLLM's fork of it."""

    def command(at: Setting) -> list[str]:
        start = [at.python, "-m", module, "--host", "127.0.0.1", "--port", str(at.port)]
        policy = "round_robin" if at.settings.get("routing") == "round_robin" else "cache_aware"
        start += ["--policy", policy, "--worker-urls", *at.engines]
        return [*start, "--prometheus-port", str(free_port())]

    return command


def _dialoop(**fields: object) -> Callable[[Setting], list[str]]:
    """Ours, with these fields in its job."""

    def command(at: Setting) -> list[str]:
        engines = [{"name": f"engine{n}", "url": f"{url}/v1"} for n, url in enumerate(at.engines)]
        document = {"port": at.port, "engines": engines, "database": _database(at)}
        path = at.folder / f"gateway-{at.port}.yaml"
        path.write_text(json.dumps(document | fields | dict(at.settings)), encoding="utf-8")
        return [at.python, "-m", _DIALOOP, "gateway", str(path)]

    return command


def _dialoop_key(at: Setting) -> str:
    """A key with limits, far away ones, so that they are counted."""
    names = ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrent")
    return make_key(_database(at), **dict.fromkeys(names, 10**9))


def make_key(database: str, **limits: int) -> str:
    """The secret of a new key of our gateway.

    Args:
        database: where the gateway keeps its keys.
        limits: fields of `KeyLimits`.
    """
    command = [sys.executable, "-m", _DIALOOP, "keys", "create", f"key-{time.monotonic_ns()}"]
    command += ["--json", "--database", database]
    command += [word for name, most in limits.items() for word in (f"--limits.{name}", str(most))]
    done = subprocess.run(command, check=True, capture_output=True, env=environment())  # noqa: S603
    return json.loads(done.stdout)["secret"]


def _database(at: Setting) -> str:
    own = f"sqlite:///{at.folder / f'gateway-{at.port}.db'}"
    return str(at.settings.get("database", own))


def environment() -> dict[str, str]:
    """That of this program; the repository can be imported from."""
    paths = [str(HERE.parents[1]), variables().get("PYTHONPATH", "")]
    return variables(PYTHONPATH=os.pathsep.join(filter(None, paths)))


_DIALOOP = "dialoop.cli.main"

PEERS: dict[str, Peer] = {
    "dialoop": Peer(_dialoop(guard="benchmarks.gateway.words:guard"), key=_dialoop_key),
    "dialoop-bare": Peer(_dialoop(require_keys=False)),
    "passthrough": Peer(_script("passthrough.py")),
    "fastapi-httpx": Peer(
        _script("fastapi_httpx.py"),
        ("fastapi==0.165.0", "httpx==0.28.1", "uvicorn[standard]==0.54.0"),
    ),
    "litellm": Peer(
        _litellm,
        ("litellm[proxy]==1.106.12",),
        lambda _: KEY,
        {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"},
    ),
    "sglang-router": Peer(_rust("sglang_router.launch_router"), ("sglang-router==0.3.2",)),
    "vllm-router": Peer(_rust("vllm_router.launch_router"), ("vllm-router==0.1.17",)),
}


def python_of(name: str, folder: Path) -> str:
    """The interpreter that runs a peer; its environment is made below `folder` if missing.

    Raises:
        subprocess.CalledProcessError: its packages do not install.
    """
    packages = PEERS[name].packages
    if not packages:
        return sys.executable
    python = folder / name / "bin" / "python"
    stamp = folder / name / "packages"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == "\n".join(packages):
        return str(python)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / name)], check=True)  # noqa: S603
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)  # noqa: S603
    stamp.write_text("\n".join(packages), encoding="utf-8")
    return str(python)


@dataclass(frozen=True, slots=True)
class RunningPeer:
    """A gateway that answers."""

    name: str
    url: str
    key: str
    process: subprocess.Popen[bytes]
    command: tuple[str, ...]
    """How it was started."""

    def rss_mb(self) -> float:
        """Memory of it and its children, in MB."""
        return sum(map(_rss_bytes, _family(self.process.pid))) / 1e6

    def cpu_s(self) -> float:
        """CPU time that it and its children have used, in seconds."""
        return sum(map(_cpu_s, _family(self.process.pid)))

    def num_fds(self) -> int:
        """Open file descriptors of it and its children."""
        pids = _family(self.process.pid)
        return sum(sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()) for pid in pids)


@contextlib.contextmanager
def running(
    name: str,
    engines: Sequence[str],
    folder: Path,
    *,
    settings: Mapping[str, object] | None = None,
    cpu: int | None = None,
    ready_s: float = 120,
) -> Generator[RunningPeer]:
    """A gateway before the engines, ended with the block.

    Args:
        name: in `PEERS`.
        engines: URLs, without `/v1`.
        folder: of environments, settings and logs.
        settings: fields of our gateway's job; others heed `routing` at most.
        cpu: the core that it is bound to.
        ready_s: how long it may take until it answers a chat.

    Raises:
        RuntimeError: it ended, or does not answer; its log is named.
    """
    peer, port, log = PEERS[name], free_port(), folder / f"{name}.log"
    setting = Setting(python_of(name, folder), port, engines, folder, settings or {})
    surroundings = isolated() if peer.packages else environment()
    key, command = peer.key(setting), peer.command(setting)
    with on_cpu(cpu), log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603  a command of `PEERS`
            command,
            stdout=out,
            stderr=out,
            env=surroundings | dict(peer.variables),
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, port, key, ready_s, log)
        yield RunningPeer(name, url, key, process, tuple(command))
    finally:
        end(process)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _wait(process: subprocess.Popen[bytes], port: int, key: str, ready_s: float, log: Path) -> None:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "ready?"}]})
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    end = time.monotonic() + ready_s
    while time.monotonic() < end and process.poll() is None:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(HTTPException, OSError), contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", body, headers)
            if connection.getresponse().status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"no chat is answered; see {log}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and make it after 10 s."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text(encoding="utf-8").split():
            found += _family(int(child))
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
