"""The leader of an engine's session: no process of an engine outlives it, or its owner for long.

Run as `python -m dialoop.engines.guard STATE ORPHAN_S` in a session of its own; the command and its
environment come on stdin. When the engine's main process ends, what it left behind is killed. When
the owner that STATE names is gone for `ORPHAN_S` and no other has taken the engine over, the engine
is ended. SIGTERM ends it at once.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from dialoop.engines import sessions
from dialoop.engines.state import read_state

GRACE_S = 10.0
"""An engine has so long to end by itself."""
_POLL_S = 0.05
_LOOK_S = 1.0


def main(state: Path, orphan_s: float) -> int:
    """Run an engine until it ends or has to; its exit code, 128 and more for a signal."""
    launch = json.load(sys.stdin)
    is_asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: is_asked.append(number))
    me = sessions.me()
    engine = subprocess.Popen(  # noqa: S603  the command that the owner made
        launch["command"], env=launch["environment"], stdin=subprocess.DEVNULL, close_fds=False
    )
    owned_at = looked_at = time.monotonic()
    while engine.poll() is None and not is_asked:
        time.sleep(_POLL_S)
        now = time.monotonic()
        if now - looked_at > _LOOK_S:
            looked_at = now
            if _is_owned(state):
                owned_at = now
            elif now - owned_at > orphan_s:
                _say(f"its owner is gone for {orphan_s:.0f} s; ending it")
                break
    sessions.end(me, 0 if engine.poll() is not None else GRACE_S, but=me.pid)
    code = engine.wait()
    _say(f"ended ({f'signal {-code}' if code < 0 else f'exit code {code}'})")
    return 128 - code if code < 0 else code


def _is_owned(state: Path) -> bool:
    found = read_state(state)
    return found is not None and found.owner.is_alive()


def _say(text: str) -> None:
    sys.stderr.write(f"dialoop: the engine: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
