"""What a request must pass before anything is read of it: the key, and the size of its body."""

from __future__ import annotations

import hmac
from collections.abc import MutableMapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from uniattn_pl.serving.server.api_errors import ApiError


class Gate:
    """Refuses requests without the key, and bodies that are too large, whether they say so or not.

    Args:
        api_key: None: everyone may ask; `/health` is open in any case.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, body_bytes: int) -> None:
        self.app, self.api_key, self.body_bytes = app, api_key, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        problem = self._key_problem(scope["path"], headers) or self._size_problem(headers.get(b"content-length"))
        if problem is not None:
            await _refused(problem)(scope, receive, send)
            return
        read = 0

        async def counted() -> MutableMapping[str, Any]:
            """What is received; once it is too much, as if the client had gone."""
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            return {"type": "http.disconnect"} if read > self.body_bytes else message

        async def unless_too_large(message: MutableMapping[str, Any]) -> None:
            if read <= self.body_bytes:
                await send(message)

        await self.app(scope, counted, unless_too_large)
        if read > self.body_bytes:
            await _refused(self._too_large())(scope, receive, send)

    def _key_problem(self, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        if self.api_key is None or path == "/health":
            return None
        given = headers.get(b"authorization", b"")
        if hmac.compare_digest(given, f"Bearer {self.api_key}".encode()):
            return None
        return ApiError(401, "this server wants its key as 'Authorization: Bearer KEY'.", code="invalid_api_key")

    def _size_problem(self, length: bytes | None) -> ApiError | None:
        too_large = length is not None and length.isdigit() and int(length[:20]) > self.body_bytes
        return self._too_large() if too_large else None

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a request may have at most {self.body_bytes} bytes here.", code="request_too_large")


def _refused(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers={"connection": "close"})
