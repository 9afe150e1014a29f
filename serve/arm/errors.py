"""Errors as OpenAI's clients read them: a status, and an object that says what and why."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    message: str
    type: str = Field(description="Kind of error, for example invalid_request_error.")
    param: str | None = Field(description="The field at fault, where there is one.")
    code: str | None


class ErrorBody(BaseModel):
    """What every response of status 400 and above holds."""

    error: ErrorDetail


KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """Ends a request with `status`. The message is one line for the caller to act on."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = KINDS.get(status, "server_error")
        self.body = ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))


def overloaded(message: str, *, status: int = 503, retry_after: int = 1) -> ApiError:
    """The arm cannot take this now: 429 for a full queue, 503 while it is starting or stopping."""
    return ApiError(status, message, headers={"retry-after": str(retry_after)})
