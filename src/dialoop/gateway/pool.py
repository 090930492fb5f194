"""Places at engines: which engine answers a request, and who waits for one.

A request waits in a bounded line, oldest first, and only as long as was configured; when the line
is full it is refused at once, so that no client waits for nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
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
        self._by_label = {one.label: one for one in self.engines}
        self._models = {name: self._model(name, entry) for name, entry in job.models.items()}
        self._line: deque[_Place] = deque()

    @property
    def num_waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    def start(self, old: Pool | None = None) -> None:
        """Check the engines that were not checked before."""
        for engine in self.engines:
            if old is None or engine not in old.engines:
                engine.start()

    async def stop(self, new: Pool | None = None) -> None:
        """Check no more those engines that a new pool has not."""
        gone = [one for one in self.engines if new is None or one not in new.engines]
        await asyncio.gather(*(one.stop() for one in gone))

    def models(self) -> Mapping[str, Model]:
        """What is served now, by name."""
        if self._models:
            return self._models
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
        return any(one.is_available(now) for group in model.groups for one in group.engines)

    async def lease(self, model: Model, key: int | None, tried: frozenset[Upstream]) -> Lease:
        """A place at an engine that was not tried yet, as soon as there is one.

        Raises:
            NoEngineError: none is left.
            ApiError: the line is full, or the wait was too long: status 429.
        """
        key = self._random.getrandbits(32) if key is None else key
        if not any(one.model is model for one in self._line) and (
            found := self._try(model, key, tried)
        ):
            return found
        if len(self._line) >= self._job.sizes.max_waiting:
            raise _busy("too many requests wait already")
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + self._job.patience.queue_s
        place = _Place(model, loop.create_future())
        self._line.append(place)
        try:
            while (left := deadline - time.monotonic()) > 0:
                # engines may also come and go, so it is asked again in between
                await asyncio.wait((place.free,), timeout=min(left, _LOOK_S))
                if found := self._try(model, key, tried):
                    return found
                if place.free.done():  # somebody was faster
                    place.free = loop.create_future()
            raise _busy(f"no engine was free within {self._job.patience.queue_s:g} s")
        finally:
            self._line.remove(place)

    def release(self, lease: Lease) -> None:
        """Give a place back."""
        lease.engine.num_open -= 1
        self._wake(lease.engine)

    def _try(self, model: Model, key: int, tried: frozenset[Upstream]) -> Lease | None:
        """A place now; None where all that may be asked are full."""
        now = time.monotonic()
        groups = [
            (group, able)
            for group in model.groups
            if (able := [e for e in group.engines if e not in tried and e.is_available(now)])
        ]
        if not groups:
            raise NoEngineError
        if len(groups) > 1:
            weights = [group.weight for group, _ in groups]
            chosen = pick_weighted(weights, key) if any(weights) else 0
            groups = [groups[chosen]]
        group, able = groups[0]
        free = [one for one in able if not one.is_full]
        if not free:
            return None
        engine = self._choose(self._job.routing, free, key)
        engine.num_open += 1
        engine.breaker.begin(now)
        return Lease(engine, group.model)

    def _choose(self, policy: Policy, free: list[Upstream], key: int) -> Upstream:
        if policy == "affinity":
            return by_affinity(free, key, 1.0)
        if policy == "least_loaded":
            return least_loaded(free, self._random)
        return free[next(self._turn) % len(free)]

    def _engine(self, old: Upstream | None, entry: EngineEntry) -> Upstream:
        """The engine that runs already, with what has changed of its entry; or a new one."""
        if old is None or old.entry.api_key != entry.api_key or old.label != entry.label:
            return Upstream(entry, self._job, self._rescue)
        old.entry, old.died = entry, self._rescue
        return old

    def _model(self, name: str, entry: ModelEntry) -> Model:
        groups = tuple(
            Group(
                version.model,
                tuple(self._by_label[own] for own in version.engines) or self.engines,
                version.weight,
            )
            for version in entry.versions
        )
        return Model(name, groups, entry.fallbacks, frozenset(entry.kinds), entry.release)

    def _wake(self, engine: Upstream) -> None:
        """Tell the first in line that may be answered there."""
        for place in self._line:
            if not place.free.done() and place.wants(engine):
                place.free.set_result(None)
                return

    def _rescue(self, engine: Upstream) -> None:
        """Ask others what a dead engine has not begun to answer, where there are others."""
        now = time.monotonic()
        groups = [group for model in self.models().values() for group in model.groups]
        if any(
            other is not engine and other.is_available(now)
            for group in groups
            if engine in group.engines
            for other in group.engines
        ):
            engine.abandon()


@dataclass(slots=True, eq=False)
class _Place:
    """A place in line."""

    model: Model
    free: asyncio.Future[None]
    """Done when it is worth to look again."""

    def wants(self, engine: Upstream) -> bool:
        return any(engine in group.engines for group in self.model.groups)


def _busy(reason: str) -> ApiError:
    return ApiError(429, f"the service is busy: {reason}", code="overloaded", retry_after_s=1)
