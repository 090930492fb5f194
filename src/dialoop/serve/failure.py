"""Errors as OpenAI's clients expect them: status, type, param, code."""

from __future__ import annotations

from dialoop.core.errors import DialoopError, MachineError, UpstreamError, UserError


class ApiError(Exception):
    """A request that cannot be answered.

    Args:
        status: HTTP status.
        message: what is wrong.
        param: the field that is wrong.
        code: OpenAI's short name of the problem.
        retry_after_s: when another try may help.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, object]:
        """The JSON document."""
        inner = {"message": str(self), "type": _type(self.status)}
        return {"error": inner | {"param": self.param, "code": self.code}}


def bad(param: str, message: str) -> ApiError:
    """A field of the request is wrong."""
    return ApiError(400, f"{param}: {message}", param=param)


def from_error(error: DialoopError) -> ApiError:
    """The HTTP form of one of our errors."""
    message = Exception.__str__(error)
    if isinstance(error, UserError):
        return ApiError(400, message)
    if isinstance(error, MachineError | UpstreamError):
        return ApiError(503, message, code="engine_unavailable", retry_after_s=2)
    return ApiError(500, message)


def _type(status: int) -> str:
    special = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    if status in special:
        return special[status]
    return "invalid_request_error" if status < 500 else "server_error"
