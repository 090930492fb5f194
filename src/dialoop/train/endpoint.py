"""An OpenAI-compatible endpoint that helps to train: it judges answers or teaches."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveFloat, PositiveInt

from dialoop.core import env
from dialoop.core.errors import UpstreamError, UserError
from dialoop.core.schema import Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

RETRIES = 4


class Endpoint(Spec, frozen=True):
    """Where a model is asked over HTTP."""

    url: str = Field(pattern=r"^https?://")
    """Base address, with `/v1`: `http://127.0.0.1:8000/v1`."""
    model: str
    """Name of the model there."""
    key_variable: str | None = None
    """Environment variable that holds the API key."""
    timeout_s: PositiveFloat = 120
    """Longest wait for one reply."""
    parallel: PositiveInt = 8
    """Requests under way at once."""

    def post_all(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The replies to several requests, in order.

        Raises:
            UserError: the endpoint refuses a request.
            UpstreamError: it cannot be reached, or fails again and again.
        """
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda body: self.post(path, body), bodies))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request; a busy or failing server is asked again, ever later."""
        url = f"{self.url.rstrip('/')}/{path}"
        request = urllib.request.Request(  # noqa: S310 - the pattern allows http alone
            url, json.dumps({"model": self.model} | body).encode(), self.headers()
        )
        problem: Exception | None = None
        for attempt in range(RETRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:  # noqa: S310
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                if error.code != 429 and error.code < 500:
                    text = error.read(500).decode(errors="replace")
                    raise UserError(f"`{url}` refuses ({error.code}): {text}") from error
                problem = error
            except (OSError, ValueError) as error:
                problem = error
            if attempt < RETRIES:
                time.sleep(0.25 * 2**attempt)
        raise UpstreamError(f"`{url}` does not answer: {problem}", hint="check that it is running")

    def headers(self) -> dict[str, str]:
        """What every request carries, the key among it.

        Raises:
            UserError: the variable of the key is not set.
        """
        headers = {"Content-Type": "application/json"}
        if self.key_variable is None:
            return headers
        if not (key := env.variables().get(self.key_variable)):
            raise UserError(f"the environment variable `{self.key_variable}` is not set")
        return headers | {"Authorization": f"Bearer {key}"}
