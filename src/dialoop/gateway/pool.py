"""Places at engines: which engine answers a request, and who waits for one.

A request waits in a bounded line, oldest first, and only as long as was configured; when the line
is full it is refused at once, so that no client waits for nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from dialoop.gateway.routing import by_affinity, least_loaded, pick_weighted
from dialoop.gateway.upstream import Upstream
from dialoop.serve.failure import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dialoop.gateway.spec import EngineEntry, GatewayJob, Kind, ModelEntry, Policy


_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Group:
    """One version of a model, and the engines that have it."""

    model: str
    """Its name there."""
    engines: tuple[Upstream, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class Model:
    """A model as clients name it."""

    name: str
    groups: tuple[Group, ...]
    fallbacks: tuple[str, ...]
    kinds: frozenset[Kind]
    release: str


@dataclass(slots=True)
class Lease:
    """A place at an engine; give it back."""

    engine: Upstream
    model: str
    """The model's name there."""


class NoEngineError(Exception):
    """No engine that was not tried yet may be asked."""


class Pool:
    """Engines and models of one configuration.

    Args:
        job: the configuration.
        old: engines of an earlier one; those whose entry has not changed are kept.
    """

    def __init__(self, job: GatewayJob, old: Pool | None = None) -> None:
        self._job = job
        self._random = random.Random()  # noqa: S311  spreads load
        self._turn = count()
        kept = {one.entry.url: one for one in old.engines} if old else {}
        self.engines: tuple[Upstream, ...] = tuple(
            self._engine(kept.get(entry.url), entry) for entry in job.engines
        )
        self._listed: tuple[tuple[str, ...], ...] = ()
        """The engines' own models, of which `_found` was made."""
        self._found: dict[str, Model] = {}
        self._draining = frozenset(
            one for one, entry in zip(self.engines, job.engines, strict=True) if entry.is_draining
        )
        self._by_label = {one.label: one for one in self.engines}
        self._models = {name: self._model(name, entry) for name, entry in job.models.items()}
        # one line for all who wait for the same engines, whichever configuration they came under
        self._line: deque[_Place] = old._line if old else deque()  # noqa: SLF001

    @property
    def num_waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    def start(self, old: Pool | None = None) -> None:
        """Take the engines over, and check those that were not checked before."""
        for engine, entry in zip(self.engines, self._job.engines, strict=True):
            engine.treat(entry, self._job, self._rescue)
            if old is None or engine not in old.engines:
                engine.start()

    async def learn(self, limit_s: float) -> None:
        """Wait until engines have told what they serve, where no models are named; not forever."""
        if self._models:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*(one.was_asked.wait() for one in self.engines))

    async def stop(self, new: Pool | None = None) -> None:
        """Check no more those engines that a new pool has not."""
        gone = [one for one in self.engines if new is None or one not in new.engines]
        await asyncio.gather(*(one.stop() for one in gone))

    def models(self) -> Mapping[str, Model]:
        """What is served now, by name."""
        if self._models:
            return self._models
        listed = tuple(engine.models for engine in self.engines)
        if listed != self._listed:
            self._listed, self._found = listed, self._learned()
        return self._found

    def _learned(self) -> dict[str, Model]:
        """The engines' own models."""
        found: dict[str, list[Upstream]] = {}
        for engine in self.engines:
            for name in engine.models:
                found.setdefault(name, []).append(engine)
        every: frozenset[Kind] = frozenset(("chat", "text", "embed", "rerank"))
        return {
            name: Model(name, (Group(name, tuple(engines), 1.0),), (), every, "")
            for name, engines in found.items()
        }

    def find(self, name: str) -> Model:
        """A model by its name or another name of it.

        Raises:
            ApiError: there is none.
        """
        name = self._job.model_aliases.get(name, name)
        found = self._models.get(name) or self.models().get(name)
        if found is None:
            known = ", ".join(sorted(self.models())) or "none yet: no engine has answered"
            raise ApiError(
                404,
                f"The model `{name[:200]}` does not exist here (known: {known})",
                param="model",
                code="model_not_found",
            )
        return found

    def is_served(self, model: Model) -> bool:
        """Whether any engine could answer now."""
        now = time.monotonic()
        return any(self._may_ask(one, now) for group in model.groups for one in group.engines)

    async def lease(
        self, model: Model, key: int | None, tried: frozenset[Upstream], limit: float
    ) -> Lease:
        """A place at an engine that was not tried yet, as soon as there is one.

        Args:
            model: what is asked for.
            key: of the conversation.
            tried: engines that are not asked again.
            limit: when to give up, by the monotonic clock.

        Raises:
            NoEngineError: none is left.
            ApiError: the line is full, or the wait was too long: status 429, or 504 at `limit`.
        """
        key = self._random.getrandbits(32) if key is None else key
        self._serve_line(model)
        if found := self.take(model, key, tried):
            return found
        if len(self._line) >= self._job.sizes.max_waiting:
            raise _busy("too many requests wait already")
        patient_until = time.monotonic() + self._job.patience.queue_s
        place = _Place(self, model, key, tried, asyncio.get_running_loop().create_future())
        self._line.append(place)
        try:
            while (left := min(limit, patient_until) - time.monotonic()) > 0:
                await asyncio.wait((place.lease,), timeout=min(left, _LOOK_S))
                if not place.lease.done():  # engines come and go, so it is asked in between
                    place.look()
                if place.lease.done():
                    return await place.lease
            if limit < patient_until:
                raise ApiError(504, "no engine was free in time", code="engine_stalled")
            raise _busy(f"no engine was free within {self._job.patience.queue_s:g} s")
        except asyncio.CancelledError:
            if place.lease.done() and not place.lease.exception():
                self.release(place.lease.result())
            raise
        finally:
            if place in self._line:
                self._line.remove(place)

    def is_free(self, model: Model, tried: frozenset[Upstream]) -> bool:
        """Whether an engine that was not tried has a place now."""
        now = time.monotonic()
        return any(
            one not in tried and not one.is_full and self._may_ask(one, now)
            for group in model.groups
            for one in group.engines
        )

    def release(self, lease: Lease) -> None:
        """Give a place back: to the first in line that may have it."""
        lease.engine.num_open -= 1
        for place in list(self._line):
            if place.wants(lease.engine):
                place.look()
                if lease.engine.is_full:
                    return

    def _serve_line(self, model: Model) -> None:
        """Let those go first who wait for a model, if engines have come back unnoticed."""
        for place in self._line:
            if place.model is model and not place.lease.done():
                place.look()
                if not place.lease.done():
                    return

    def take(self, model: Model, key: int, tried: frozenset[Upstream]) -> Lease | None:
        """A place now; None where all that may be asked are full.

        Raises:
            NoEngineError: none may be asked.
        """
        now = time.monotonic()
        groups = [
            (group, able)
            for group in model.groups
            if (able := [e for e in group.engines if e not in tried and self._may_ask(e, now)])
        ]
        if not groups:
            raise NoEngineError
        if len(groups) > 1:
            weights = [group.weight for group, _ in groups]
            groups = [groups[pick_weighted(weights, key)]]
        group, able = groups[0]
        free = [one for one in able if not one.is_full]
        if not free:
            return None
        engine = self._choose(self._job.routing, free, key)
        engine.num_open += 1
        engine.breaker.begin(now)
        return Lease(engine, group.model)

    def _may_ask(self, engine: Upstream, now: float) -> bool:
        return engine not in self._draining and engine.is_available(now)

    def _choose(self, policy: Policy, free: list[Upstream], key: int) -> Upstream:
        if policy == "affinity":
            return by_affinity(free, key, 1.0)
        if policy == "least_loaded":
            return least_loaded(free, self._random)
        return free[next(self._turn) % len(free)]

    def _engine(self, old: Upstream | None, entry: EngineEntry) -> Upstream:
        """The engine that runs already, or a new one."""
        if old is None or old.entry.api_key != entry.api_key or old.label != entry.label:
            return Upstream(entry, self._job, self._rescue)
        return old

    def _model(self, name: str, entry: ModelEntry) -> Model:
        groups = tuple(
            Group(
                version.model,
                tuple(self._by_label[own] for own in version.engines) or self.engines,
                version.weight,
            )
            for version in entry.versions
            if version.weight
        )
        return Model(name, groups, entry.fallbacks, frozenset(entry.kinds), entry.release)

    def _rescue(self, engine: Upstream) -> None:
        """Ask others what a dead engine has not begun to answer, where there are others."""
        now = time.monotonic()
        groups = [group for model in self.models().values() for group in model.groups]
        if any(
            other is not engine and self._may_ask(other, now)
            for group in groups
            if engine in group.engines
            for other in group.engines
        ):
            engine.abandon()


@dataclass(slots=True, eq=False)
class _Place:
    """A place in line."""

    pool: Pool
    model: Model
    key: int
    tried: frozenset[Upstream]
    lease: asyncio.Future[Lease]
    """What is waited for."""

    def wants(self, engine: Upstream) -> bool:
        """Whether an engine might answer it."""
        return (
            not self.lease.done()
            and engine not in self.tried
            and any(engine in group.engines for group in self.model.groups)
        )

    def look(self) -> None:
        """Take an engine that is free, or learn that none is left."""
        try:
            found = self.pool.take(self.model, self.key, self.tried)
        except NoEngineError as error:
            self.lease.set_exception(error)
        else:
            if found:
                self.lease.set_result(found)


def _busy(reason: str) -> ApiError:
    return ApiError(429, f"the service is busy: {reason}", code="overloaded", retry_after_s=1)
