"""One process of a job that `launch` started: `python -m dialoop.train.parallel.worker JOB SOCKET`.

It runs the job as under any launcher that sets RANK, and sends events, result and error home.
"""

from __future__ import annotations

import sys
from multiprocessing.connection import Client
from pathlib import Path
from threading import Lock

from dialoop.core import env, jobfile
from dialoop.core.errors import DialoopError
from dialoop.train.parallel.launch import end_with_parent
from dialoop.train.run import run
from dialoop.train.spec import TrainJob


def main(job_file: str, address: str) -> int:
    """Run the job; returns the exit code."""
    connection = Client(address, "AF_UNIX")
    end_with_parent(connection)
    lock = Lock()

    def send(kind: str, content: object) -> None:
        with lock:
            connection.send((kind, content))

    job = jobfile.load(TrainJob, Path(job_file))
    try:
        result = run(job, lambda event: send("event", event))
    except DialoopError as error:
        send("error", error)
        return error.exit_code
    if env.local_rank() == 0:
        send("result", result)
    return 0


if __name__ == "__main__":
    env.default("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main(*sys.argv[1:]))
