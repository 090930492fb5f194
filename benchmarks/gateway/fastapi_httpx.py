"""The gateway that tutorials write: FastAPI and httpx. Run by the environment that `peers` makes.

Usage: python benchmarks/gateway/fastapi_httpx.py PORT ENGINE_URL
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import fastapi  # pyright: ignore[reportMissingImports]
import httpx
import uvicorn
from fastapi.responses import (  # pyright: ignore[reportMissingImports]
    JSONResponse,
    Response,
    StreamingResponse,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

app = fastapi.FastAPI()
client = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None))


@app.get("/health")
async def health() -> dict[str, str]:
    """Alive."""
    return {"status": "ok"}


@app.post("/v1/chat/completions")
async def chat(body: dict[str, Any]) -> Response:
    """Pass a chat on."""
    url = sys.argv[2] + "/v1/chat/completions"
    if not body.get("stream"):
        answer = await client.post(url, json=body)
        return JSONResponse(answer.json(), status_code=answer.status_code)

    async def pieces() -> AsyncIterator[bytes]:
        async with client.stream("POST", url, json=body) as answer:
            async for piece in answer.aiter_raw():
                yield piece

    return StreamingResponse(pieces(), media_type="text/event-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
