"""A server that speaks as vLLM does, without a model: what the supervisor's tests start.

Run as `python openai_server.py PORT [fail]`. Every answer counts up from the prompt's last token; a
child process stands for an engine's workers. Adapters add a thousand to each token.
"""

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

from aiohttp import web

PAUSE_S = 0.02


class Server:
    """Routes of vLLM that dialoop uses."""

    def __init__(self) -> None:
        self.adapters: set[str] = set()
        self.num_open = 0

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = await request.json()
        if body["model"] != "base" and body["model"] not in self.adapters:
            error = {"error": {"message": f"no model {body['model']}"}}
            return web.json_response(error, status=404)
        shift = 0 if body["model"] == "base" else 1000
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.num_open += 1
        try:
            for n in range(body["max_tokens"]):
                if n:
                    await asyncio.sleep(PAUSE_S)
                token = body["prompt"][-1] + 1 + n + shift
                finish = "length" if n + 1 == body["max_tokens"] else None
                if token in body["stop_token_ids"]:
                    finish = "stop"
                await self._send(response, {"token_ids": [token], "finish_reason": finish})
                if finish:
                    break
            await response.write(b"data: [DONE]\n\n")
        finally:
            self.num_open -= 1
        return response

    async def _send(self, response: web.StreamResponse, choice: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")

    async def load(self, request: web.Request) -> web.Response:
        self.adapters.add((await request.json())["lora_name"])
        return web.Response(text="ok")

    async def unload(self, request: web.Request) -> web.Response:
        self.adapters.discard((await request.json())["lora_name"])
        return web.Response(text="ok")

    async def facts(self, request: web.Request) -> web.Response:
        return web.json_response({"pid": os.getpid(), "open": self.num_open})


def main(port: int) -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    server = Server()
    app = web.Application()
    app.router.add_post("/v1/completions", server.completions)
    app.router.add_post("/v1/load_lora_adapter", server.load)
    app.router.add_post("/v1/unload_lora_adapter", server.unload)
    app.router.add_get("/facts", server.facts)
    web.run_app(app, host="127.0.0.1", port=port, print=lambda *_: None)


if __name__ == "__main__":
    if sys.argv[2:] == ["fail"]:
        raise SystemExit("MemoryError: the model does not fit")
    main(int(sys.argv[1]))
