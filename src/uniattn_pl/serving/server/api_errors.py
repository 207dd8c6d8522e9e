"""Errors as OpenAI's API gives them: a status and `{"error": {message, type, param, code}}`, never a traceback."""

from __future__ import annotations

from typing import Any

INVALID, UNAVAILABLE = "invalid_request_error", "server_error"


class ApiError(Exception):
    """A request that cannot be answered.

    Args:
        status: of HTTP.
        message: what is wrong, and what is allowed.
        param: the field of the request it is about.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = INVALID if self.status < 500 else UNAVAILABLE
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def shutting_down() -> ApiError:
    """The answer to whoever waits when the server ends."""
    return ApiError(503, "the server is shutting down.", code="shutting_down")
