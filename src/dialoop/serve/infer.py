"""`dialoop infer`: every row of a file answered, in batches; what is answered is never asked again.

Answers are appended as they come, so that a kill loses only those under way; when all are there the
file is put into the order of the input. A row is known by its `id`, or by its content.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from dialoop.chat.message import Message, message, to_openai
from dialoop.core.errors import UserError
from dialoop.core.events import Artifact, Note, Progress
from dialoop.core.files import machine_errors, refuse_file, sha256, write_bytes
from dialoop.core.schema import Result
from dialoop.data.load import load
from dialoop.data.spec import DataSpec, Reading
from dialoop.engines import Request, Sampling
from dialoop.engines.text import complete
from dialoop.models import checkpoint
from dialoop.models.load import base_of
from dialoop.serve.model import OpenModel, open_model
from dialoop.serve.writer import usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import BinaryIO

    from dialoop.core.events import Event
    from dialoop.data.sample import Sample
    from dialoop.serve.spec import InferJob

Json = dict[str, Any]


class InferResult(Result, frozen=True):
    """What batch inference did; answered + kept + failed is the number of usable rows."""

    output: str
    answered: int
    """Rows answered now."""
    kept: int
    """Rows that the output had already."""
    failed: int
    """Rows that could not be answered; each has an `error` and is asked again the next time."""
    rejected: int
    """Rows of the input that could not be read."""
    generated_tokens: int
    seconds: float

    def text(self) -> str:
        """Two lines."""
        rate = self.generated_tokens / self.seconds if self.seconds else 0.0
        return (
            f"{self.answered} rows answered, {self.kept} kept, {self.failed} failed, "
            f"{self.rejected} unreadable\n"
            f"{self.generated_tokens} tokens in {self.seconds:.1f} s ({rate:.0f} tokens/s): "
            f"{self.output}"
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One row to answer."""

    id: str
    messages: tuple[Message, ...]
    """Empty for plain text, which is continued."""
    text: str


def run(job: InferJob, emit: Callable[[Event], None]) -> InferResult:
    """Answer what is not answered yet.

    Raises:
        UserError: the input gives no row, or the output is of another model or other settings, or
            no file.
        MachineError: the output may not be written.
    """
    output = Path(job.output)
    refuse_file(output.parent)
    if output.is_dir():
        raise UserError(f"output `{output}` is a folder", hint="name a .jsonl file")
    reading = {name: getattr(job, name) for name in Reading.model_fields}
    loaded = load(DataSpec(dataset=[job.input], **reading), emit)
    rejected = loaded.report.rejected
    if rejected:
        emit(Note(f"{rejected} unreadable rows, listed in {loaded.rejected}", level="warning"))
    rows = read_rows(loaded.train, job.system)
    with asyncio.Runner() as runner:
        model = runner.run(open_model(job.model, job, emit))
        try:
            return _answer_all(job, model, rows, rejected, emit, runner)
        finally:
            runner.run(model.engine.stop())


def read_rows(samples: Iterable[Sample], system: str | None) -> list[Row]:
    """The prompts of samples; rows of the same content are told apart by a number.

    Args:
        samples: in the order of the input.
        system: begins dialogues that have no system message.
    """
    rows: list[Row] = []
    seen: Counter[str] = Counter()
    for sample in samples:
        messages = _prompt(sample, system)
        text = sample.text or ""
        given = dict(sample.extra).get("id")
        key = str(given) if given is not None else _digest([to_openai(m) for m in messages], text)
        seen[key] += 1
        unique = key if seen[key] == 1 else f"{key}-{seen[key]}"
        rows.append(Row(unique, messages, text))
    return rows


def _prompt(sample: Sample, system: str | None) -> tuple[Message, ...]:
    messages = sample.messages or sample.query
    while messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if system and messages and messages[0].role != "system":
        messages = (message("system", system), *messages)
    return messages


def _digest(*values: Any) -> str:
    return hashlib.sha256(orjson.dumps(values, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _answer_all(
    job: InferJob,
    model: OpenModel,
    rows: list[Row],
    rejected: int,
    emit: Callable[[Event], None],
    runner: asyncio.Runner,
) -> InferResult:
    output, run_key = Path(job.output), _run_key(job, model)
    done = read_done(output, run_key)
    waiting = [row for row in rows if row.id not in done]
    kept = len(rows) - len(waiting)
    if kept:
        emit(Note(f"{kept} of {len(rows)} rows are answered already"))
    began = time.monotonic()
    write_bytes(output, _lines(done.values()))  # without failed rows and a torn end
    with machine_errors(output, "writing"), output.open("ab") as file:
        answering = _Answering(job, model, run_key, file, emit)
        fresh = runner.run(answering.all(waiting, kept))
    seconds = time.monotonic() - began
    everything = done | fresh
    write_bytes(output, _lines(everything[row.id] for row in rows))
    emit(Artifact("answers", str(output)))
    failed = [item["error"] for item in fresh.values() if "error" in item]
    if failed:
        emit(Note(f"{len(failed)} rows could not be answered; first: {failed[0]}", "warning"))
    counts = [item["usage"]["completion_tokens"] for item in fresh.values() if "usage" in item]
    return InferResult(
        output=str(output),
        answered=len(counts),
        kept=kept,
        failed=len(failed),
        rejected=rejected,
        generated_tokens=sum(counts),
        seconds=round(seconds, 2),
    )


def _lines(items: Iterable[Json]) -> bytes:
    return b"".join(orjson.dumps(item) + b"\n" for item in items)


def _run_key(job: InferJob, model: OpenModel) -> str:
    """What the answers depend on beside the row."""
    settings = (job.max_new_tokens, job.temperature, job.top_p, job.seed, job.stop, job.system)
    return _digest(*_weights(model.folder), model.template.digest, settings)


def _weights(folder: Path) -> tuple[str, ...]:
    """What tells a model's weights apart: an adapter's files beside its base's."""
    if not checkpoint.is_adapter(folder):
        return (checkpoint.fingerprint(folder),)
    files = (folder / checkpoint.ADAPTER, folder / "adapter_model.safetensors")
    return (checkpoint.fingerprint(base_of(folder)), *(sha256(file) for file in files))


def read_done(output: Path, run_key: str) -> dict[str, Json]:
    """Answers that the file has, by row id; failed rows and a torn last line are left out.

    Raises:
        UserError: an answer is of another model or other settings, or the file is something else.
    """
    if not output.exists():
        return {}
    done: dict[str, Json] = {}
    lines = output.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        item: Json = {}
        with suppress(orjson.JSONDecodeError):
            item = orjson.loads(line)
        if not item and number == len(lines):
            continue
        if item.get("run") != run_key:
            raise UserError(
                f"`{output}` line {number} is no answer of this model with these settings",
                hint="give another output file, or delete this one",
            )
        if "error" not in item:
            done[item["id"]] = item
    return done


class _Answering:
    """Rows on their way through the engine, and their answers into the file."""

    def __init__(
        self,
        job: InferJob,
        model: OpenModel,
        run_key: str,
        file: BinaryIO,
        emit: Callable[[Event], None],
    ) -> None:
        self._job, self._model, self._run_key = job, model, run_key
        self._file, self._emit = file, emit
        self._answers: dict[str, Json] = {}

    async def all(self, rows: list[Row], num_kept: int) -> dict[str, Json]:
        """Answer rows, some more than the engine takes at once, so that it never waits."""
        todo = iter(rows)
        total = num_kept + len(rows)

        async def work() -> None:
            for row in todo:
                answer = await self._answer(row)
                self._answers[row.id] = answer
                self._file.write(_lines([answer]))
                self._file.flush()
                done = num_kept + len(self._answers)
                self._emit(Progress("answer", done, total, "rows"))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(len(rows), self._job.max_concurrent + 8)):
                group.create_task(work())
        return self._answers

    async def _answer(self, row: Row) -> Json:
        head: Json = {"id": row.id, "run": self._run_key}
        spelt = [to_openai(item) for item in row.messages]
        try:
            answer = await complete(
                self._model.engine,
                self._model.template.tokenizer,
                self._request(row),
                self._job.stop,
            )
        except UserError as error:
            return head | {"messages": spelt, "error": Exception.__str__(error)}
        counts = usage(answer.num_prompt_tokens, answer.num_tokens)
        tail = {"output": answer.text, "finish_reason": answer.finish, "usage": counts}
        if not row.messages:
            return head | {"prompt": row.text} | tail
        return head | {"messages": [*spelt, {"role": "assistant", "content": answer.text}]} | tail

    def _request(self, row: Row) -> Request:
        job, template = self._job, self._model.template
        ids = (
            template.prompt_ids(row.messages)
            if row.messages
            else template.tokenizer.encode(row.text)
        )
        room = self._model.engine.info.max_length - len(ids)
        if room < 1:
            raise UserError(f"{len(ids)} prompt tokens leave no room for an answer")
        sampling = Sampling(
            max_tokens=min(job.max_new_tokens, room),
            temperature=job.temperature,
            top_p=job.top_p,
            seed=job.seed,
        )
        return Request(tuple(ids), sampling, template.stop_ids)
