"""The command line: `dialoop VERB [JOB.yaml] [--field value ...] [a.b=value ...]`."""

from __future__ import annotations

import errno
import json
import logging
import os
import readline
import select
import sys
import traceback
from typing import TYPE_CHECKING, Any

from dialoop import __version__
from dialoop.cli.arguments import parse
from dialoop.cli.completion import complete, script
from dialoop.cli.help import overview, verb_page
from dialoop.cli.sinks import TerminalSink
from dialoop.core import env, jobfile
from dialoop.core.errors import DialoopError, MachineError, UserError
from dialoop.jobs.catalog import CATALOG, JobKind, find

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from dialoop.cli.arguments import Arguments
    from dialoop.core.schema import Result, Spec

INTERRUPTED = 130
READER_GONE = 141
"""What a shell reports of a program that SIGPIPE ended."""
_MACHINE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def entry() -> None:
    """The `dialoop` program."""
    # Read when torch is first imported: waiting threads sleep. Spinning, they slow down training
    # on a busy machine several times, and win a few percent on an idle one.
    env.default("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main(sys.argv[1:]))


def main(words: list[str]) -> int:
    """Run one command.

    Args:
        words: the command without the program's name.

    Returns:
        The exit code: 0 done, 1 our bug, 2 the request is wrong, 3 this machine lacks something,
        4 an upstream failed, 130 interrupted, 141 the reader of stdout went away.
    """
    output = _Output(as_json="--json" in words)
    try:
        code = _guarded(words, output)
        output.flush()
    except _ReaderGoneError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return READER_GONE
    return code


def _guarded(words: list[str], output: _Output) -> int:
    """Run, and turn whatever is raised into a report and an exit code."""
    try:
        return _command(words, output)
    except _ReaderGoneError:
        raise
    except DialoopError as error:
        return output.fail(error)
    except KeyboardInterrupt:
        output.interrupted()
        return INTERRUPTED
    except MemoryError as error:
        return output.fail(_out_of_memory(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            raise _ReaderGoneError from error
        if error.errno in _MACHINE_ERRNOS:
            return output.fail(_machine_error(error))
        return output.bug(error)
    except Exception as error:  # noqa: BLE001  the last resort reports our own bug
        return output.bug(error)


def _command(words: list[str], output: _Output) -> int:
    if not words or words[0] in {"--help", "-h", "help"}:
        output.show(overview(__version__))
        return 0
    if words[0] in {"--version", "-V"}:
        output.document({"version": __version__}, f"dialoop {__version__}")
        return 0
    if words[0] in {"completion", "__complete"}:
        _completion(words[0], words[1:], output)
        return 0
    found = find(words)
    if found is None:
        return _part_of_a_verb(words, output)
    verb, kind, rest = found
    return _verb(verb, kind, rest, output)


def _verb(verb: str, kind: JobKind, words: list[str], output: _Output) -> int:
    if any(word in {"--help", "-h"} for word in words):
        output.show(verb_page(verb, kind))
        return 0
    spec = kind.load_spec()
    arguments = parse(spec, words, kind.positional)
    _start_log(arguments)
    job = jobfile.load(spec, arguments.file, arguments.settings, kind.preset)
    if "dry_run" in arguments.switches:
        _dry_run(kind, job, output)
        return 0
    return _run(kind, job, output)


def _run(kind: JobKind, job: Spec, output: _Output) -> int:
    with output.reserved_stdout(), TerminalSink(output.error_console()) as sink:
        result = _call(kind, job, sink, output)
    if env.rank() == 0:  # of those that another launcher started, one tells
        output.document(result.model_dump(mode="json"), result.text())
    return result.exit_code


def _call(kind: JobKind, job: Spec, sink: TerminalSink, output: _Output) -> Result:
    run = kind.load_run()
    if not kind.interactive:
        return run(job, sink)

    readline.set_history_length(1000)  # its import gives `input` line editing and history

    def read(prompt: str) -> str:
        """One line from the person at the terminal; raises EOFError at the end."""
        sink.pause()
        return input(prompt)

    return run(job, sink, read, output.write)


def _dry_run(kind: JobKind, job: Spec, output: _Output) -> None:
    from rich.console import Group

    planner = kind.load_plan()
    with output.reserved_stdout():
        plan = planner(job) if planner else None
    document: dict[str, Any] = {"job": job.model_dump(mode="json")}
    if plan is None:
        output.document(document, jobfile.dump(job).rstrip())
        return
    document["plan"] = plan.model_dump(mode="json")
    output.document(document, Group(_plain(jobfile.dump(job)), _plain(plan.text())))


def _completion(word: str, words: list[str], output: _Output) -> None:
    if word == "completion":
        output.write(script(words))
    else:
        output.write("".join(f"{found}\n" for found in complete(words)))


def _part_of_a_verb(words: list[str], output: _Output) -> int:
    """`dialoop data --help` lists the verbs that begin with `data`; anything else is unknown."""
    members = {verb: kind for verb, kind in CATALOG.items() if verb.split()[0] == words[0]}
    if members and set(words[1:]) <= {"--help", "-h"} and len(words) > 1:
        listed = "\n".join(f"dialoop {verb}: {kind.summary}" for verb, kind in members.items())
        output.show(_plain(listed))
        return 0
    raise _unknown_verb(words, list(members))


def _unknown_verb(words: list[str], members: list[str]) -> UserError:
    names = [*CATALOG, *(name for kind in CATALOG.values() for name in kind.also), "completion"]
    given = " ".join(word for word in words[:2] if not word.startswith("-")) or words[0]
    guess = jobfile.did_you_mean(given, names) or jobfile.did_you_mean(words[0], names)
    if members and len(words) < 2:
        return UserError(f"`{words[0]}` is half a verb", hint=f"write one of: {', '.join(members)}")
    named = given if members else words[0]
    return UserError(
        f"unknown verb `{named}`{guess}", hint="run `dialoop --help` to see every verb"
    )


class _ReaderGoneError(Exception):
    """Whoever read our stdout has closed it."""


class _Output:
    """Standard output and error of one command, as text or as one JSON document."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def show(self, page: RenderableType) -> None:
        """Print text or a page for people."""
        from rich.console import Console

        console = Console()
        with console.capture() as captured:
            if isinstance(page, str):
                console.print(page, markup=False, highlight=False, soft_wrap=True)
            else:
                console.print(page)
        self.write(captured.get())

    def document(self, data: dict[str, Any], page: RenderableType) -> None:
        """Print the outcome: the data with `--json`, the page without."""
        if self._as_json:
            self.write(json.dumps(data, ensure_ascii=False, indent=2) + "\n")
        elif page != "":
            self.show(page)

    def write(self, text: str) -> None:
        """Print text as it is, at once."""
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise _ReaderGoneError from error

    def flush(self) -> None:
        """Send what is buffered."""
        self.write("")

    def reserved_stdout(self) -> _ReservedStdout:
        """While it is held, what libraries print goes to stderr if the outcome is JSON."""
        return _ReservedStdout(active=self._as_json)

    def error_console(self) -> Console:
        """Where progress goes: always stderr."""
        from rich.console import Console

        return Console(stderr=True)

    def fail(self, error: DialoopError) -> int:
        """Report an error that was raised on purpose; returns its exit code."""
        message = str(error.args[0]) if error.args else type(error).__name__
        self._report(type(error).__name__, message, error.hint)
        return error.exit_code

    def interrupted(self) -> None:
        """Report Ctrl-C in one line."""
        self._report("Interrupted", "interrupted", None, prefix="")

    def bug(self, error: BaseException) -> int:
        """Report a bug of ours with its traceback; returns 1."""
        sys.stderr.write("".join(traceback.format_exception(error)))
        hint = "report it with the lines above and the output of `dialoop doctor --json`"
        self._report(type(error).__name__, f"this is a bug in dialoop: {error!r}", hint)
        return 1

    def _report(self, kind: str, message: str, hint: str | None, prefix: str = "error: ") -> None:
        sys.stderr.write(f"{prefix}{message}\n" + (f"hint: {hint}\n" if hint else ""))
        if self._as_json:
            fault = {"type": kind, "message": message, "hint": hint}
            self.write(json.dumps({"error": fault}, ensure_ascii=False, indent=2) + "\n")


class _ReservedStdout:
    """Points file descriptor 1 at stderr, for libraries and children that print on their own."""

    def __init__(self, *, active: bool) -> None:
        self._active = active
        self._saved = -1

    def __enter__(self) -> None:
        if self._active:
            sys.stdout.flush()
            self._saved = os.dup(1)
            os.dup2(2, 1)

    def __exit__(self, *_: object) -> None:
        if self._active:
            sys.stdout.flush()
            os.dup2(self._saved, 1)
            os.close(self._saved)


def _stdout_is_closed() -> bool:
    """Whether nobody reads our stdout any more: then a broken pipe is not a fault."""
    poll = select.poll()
    poll.register(1, 0)
    return any(state & select.POLLERR for _, state in poll.poll(0))


def _start_log(arguments: Arguments) -> None:
    level = logging.DEBUG if "verbose" in arguments.switches else logging.WARNING
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )


def _plain(page: RenderableType) -> RenderableType:
    from rich.text import Text

    return Text(page) if isinstance(page, str) else page


def _machine_error(error: OSError) -> MachineError:
    what = (error.strerror or str(error)).lower()
    where = f" at `{error.filename}`" if error.filename else ""
    return MachineError(
        f"the machine refused: {what}{where}",
        hint="free some space or choose a folder that you may write",
    )


def _out_of_memory(error: MemoryError) -> MachineError:
    detail = f": {error}" if str(error) else ""
    return MachineError(
        f"out of memory{detail}", hint="make the job smaller, or close other programs"
    )


if __name__ == "__main__":
    entry()
