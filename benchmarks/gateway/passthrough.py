"""A bare ASGI pass-through to one engine: what a Python gateway without any feature can do.

Usage: python benchmarks/gateway/passthrough.py PORT ENGINE_URL
"""

from __future__ import annotations

import sys
from typing import Any

import aiohttp
import uvicorn


class PassThrough:
    """Sends each request on and its answer back, piece by piece."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        headers = {"content-type": "application/json"}
        url = self._engine + scope["path"]
        async with self._session.request(
            scope["method"], url, data=body or None, headers=headers
        ) as answer:
            kept = [
                (name.lower().encode(), value.encode())
                for name, value in answer.headers.items()
                if name.lower() in {"content-type", "content-length"}
            ]
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvicorn.run(
        PassThrough(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="error",
    )
