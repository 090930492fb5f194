"""What the gateway works with under one configuration: engines, keys, limits, filter, numbers."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dialoop.core import env
from dialoop.gateway import guard
from dialoop.gateway.metrics import GatewayMetrics
from dialoop.gateway.pool import Pool
from dialoop.gateway.relay import Relay

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from dialoop.gateway.call import Call
    from dialoop.gateway.guard import Guard
    from dialoop.gateway.keys import Key
    from dialoop.gateway.spec import GatewayJob
    from dialoop.gateway.visit import Visit

log = logging.getLogger("dialoop.gateway.access")


@dataclass(frozen=True, slots=True)
class Parts:
    """One configuration, opened."""

    job: GatewayJob
    pool: Pool
    relay: Relay
    metrics: GatewayMetrics
    guard: Guard | None = None

    def find_key(self, authorization: bytes) -> Key | None:
        """Whose request it is; None where no keys are wanted."""
        return None

    @asynccontextmanager
    async def admitted(self, visit: Visit, call: Call) -> AsyncGenerator[None, None]:
        """A block in which a request counts against the limits of its key."""
        yield

    def tell(self, visit: Visit, now: float) -> None:
        """A request has ended: to logs and traces."""

    async def close(self) -> None:
        """Let go of everything."""
        await self.pool.stop()


async def open_parts(job: GatewayJob, index: int, old: Parts | None = None) -> Parts:
    """Open a configuration.

    Args:
        job: the configuration.
        index: of this worker among the gateway's.
        old: what is open already; what has not changed is taken over.

    Raises:
        DialoopError: something of it cannot be had.
    """
    pool = Pool(job, old.pool if old else None)
    return Parts(
        job=job,
        pool=pool,
        relay=Relay(pool, job.patience, job.sizes),
        metrics=old.metrics if old else GatewayMetrics(is_shared=env.has_shared_metrics()),
        guard=guard.load(job.guard) if job.guard else None,
    )
