"""A small OpenAI-compatible endpoint that answers by a function."""

import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


@contextmanager
def serving(answer: Callable[[str, Json], Any], *, wait_s: float = 0.0) -> Generator[str]:
    """Serve for the length of the block and give the address.

    Args:
        answer: of the path and the body, the reply: an object, the pieces of a stream, or a
            status with or without words.
        wait_s: before each piece.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = answer(self.path, body)
            if isinstance(reply, int):
                self.send_error(reply)
                return
            if isinstance(reply, tuple):
                self.send_error(*reply)
                return
            self.send_response(200)
            self.end_headers()
            if not isinstance(reply, list):
                self.wfile.write(json.dumps(reply).encode())
                return
            for piece in reply:
                time.sleep(wait_s)
                event = {"choices": [{"delta": {"content": piece}}]}
                self._event(json.dumps(event))
            self._event(json.dumps({"choices": [], "usage": {"completion_tokens": len(reply)}}))
            self._event("[DONE]")

        def _event(self, data: str) -> None:
            self.wfile.write(f"data: {data}\n\n".encode())
            self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(text: str, **fields: Any) -> Json:
    """A chat completion."""
    message = {"role": "assistant", "content": text, **fields}
    return {"choices": [{"message": message}], "usage": {"prompt_tokens": 7}}
