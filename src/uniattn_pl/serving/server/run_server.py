"""Our own server as a process: bound before the model is loaded, told when it is ready, ended by a signal."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware

from uniattn_pl.inference.device import fastest_device
from uniattn_pl.modeling.loading.pretrained import load_folder, load_folder_tokenizer
from uniattn_pl.serving.server.app import build_app, start_turns
from uniattn_pl.serving.server.questions import Served
from uniattn_pl.serving.server.serve_request import LOOPBACK, ServeRequest, default_tokens, ready_lines
from uniattn_pl.serving.server.server_limits import ServerLimits
from uniattn_pl.serving.server.turns import Turns

if TYPE_CHECKING:
    from fastapi import FastAPI

PATIENCE_S = 5  # for answers that are under way to be told that the server ends


def run_server(request: ServeRequest, listening: socket.socket) -> int:
    """Serve a model folder until a signal comes; returns the exit code.

    Args:
        listening: where clients connect; they wait until the model is loaded.

    Raises:
        UserError: as `load_folder`.
    """
    tokenizer = load_folder_tokenizer(request.source)
    model = load_folder(request.source, device=fastest_device())
    tokens = request.tokens or default_tokens(model.config)
    given = {"parallel": request.parallel, "waiting": request.waiting}
    limits = ServerLimits(tokens, **{name: value for name, value in given.items() if value is not None})
    served = Served(request.name, model, tokenizer, limits)
    turns = start_turns(served)
    app = build_app(served, turns, api_key=request.api_key)
    if request.host in LOOPBACK:  # a page in a browser may not come here under a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", *LOOPBACK])
    lines = ready_lines(request, chat=bool(getattr(tokenizer, "chat_template", None)))
    server = _SignalledServer(app, turns, lambda: print("\n".join(lines), flush=True))
    server.run(sockets=[listening])
    if server.signalled is None:
        return 1  # uvicorn has said why
    print(f"{signal.Signals(server.signalled).name} received; the server has ended.", file=sys.stderr)
    return 128 + server.signalled


class _SignalledServer(uvicorn.Server):
    """Says when it is ready, and at a signal has the model stop before it waits for its connections."""

    def __init__(self, app: FastAPI, turns: Turns, ready: Callable[[], None]) -> None:
        quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=PATIENCE_S, **quiet))
        self._turns, self._ready = turns, ready
        self.signalled: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen to signals while the server runs; the stock one raises them again when it has ended."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        former = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.signalled = sig
        self._turns.stop()
        super().handle_exit(sig, frame)
