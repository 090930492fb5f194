"""A piece of asynchronous work on an open database."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from dialoop.gateway.database import Database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


def with_database(url: str, work: Callable[[Database], Awaitable[T]], timeout_s: float = 2.0) -> T:
    """Open, work, close; no connection may be left in use."""

    async def whole() -> T:
        database = await Database.open(url, timeout_s)
        try:
            result = await work(database)
            assert database.num_connections == 0
            return result
        finally:
            await database.close()

    return asyncio.run(whole())
