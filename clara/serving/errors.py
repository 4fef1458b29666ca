"""What a client receives in place of an answer, in the form of the OpenAI API."""

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

RETRY_SECONDS = 1


class ErrorDetail(BaseModel):
    """What went wrong, and what to do."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorReply(BaseModel):
    """The body of every reply with an error status."""

    error: ErrorDetail


_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_CODES = {
    400: "unreadable_body",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "slow_body",
    413: "body_too_large",
    422: "invalid_request",
    429: "queue_full",
    500: "internal_error",
    503: "unavailable",
    504: "too_late",
}
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": _CODES[status].replace("_", " ")}
    for status in (400, 401, 408, 413, 422, 429, 500, 503, 504)
}
"""Statuses of every request below /v1/ that are no success."""
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "the answer; server-sent events if `stream` is true", "content": {"text/event-stream": {}}}
}
"""The success of a request that may ask for a stream."""


def detail(status: int, message: str, code: str = "") -> ErrorDetail:
    """The body for a status and a message."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return ErrorDetail(message=message, type=kind, code=code or _CODES.get(status, "error"))


def error_response(status: int, message: str, code: str = "") -> JSONResponse:
    """The response of a status."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": str(RETRY_SECONDS)}}.get(status)
    return JSONResponse(ErrorReply(error=detail(status, message, code)).model_dump(), status, headers)
