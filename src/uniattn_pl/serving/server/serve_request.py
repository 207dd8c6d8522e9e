"""What `serve` is asked for, where it listens, and what it says when it is ready."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.errors import UserError
from uniattn_pl.printed_commands import curl_post, openai_completion
from uniattn_pl.serving.server.server_limits import TOKENS_WITHOUT_POSITIONS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LOOPBACK = ("127.0.0.1", "localhost")
KEY_VARIABLE = "UNIATTN_PL_API_KEY"
PORTS = range(2**16)
EXAMPLE_TEXT, EXAMPLE_QUESTION, EXAMPLE_TOKENS = "The heart pumps", "What does the heart do?", 32


@dataclass(frozen=True)
class ServeRequest:
    """A model and how it is to be served.

    Attributes:
        source: a model folder, or a .gguf file.
        name: what clients call the model.
        host, port: where the server listens.
        tokens: of a text at most; None: as many as the model has positions.
        parallel: texts that are made at the same time; None: the engine's default.
        waiting: texts that wait; None: the default.
        api_key: what clients must send; None: nothing.
        python: the interpreter of the engine's own environment; None: where it usually is.
    """

    source: Path
    name: str
    host: str
    port: int
    tokens: int | None = None
    parallel: int | None = None
    waiting: int | None = None
    api_key: str | None = None
    python: Path | None = None

    @property
    def url(self) -> str:
        """Where this machine reaches the server."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", *LOOPBACK) else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UserError: the port is taken or may not be used, or the host is none of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise UserError(f"--host '{host}' is no name or address; give one of this machine's, as 127.0.0.1.") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise UserError(_why_not(host, port, error)) from None
    return listening


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"--port {port} is taken on {host}; end what listens there, give another one, or --port 0 for a free one."
        )
    if error.errno == errno.EACCES:
        return f"--port {port} may not be used by you; give one from 1024 on."
    return f"--host '{host}' is no address of this machine ({os.strerror(error.errno or 0)}); 127.0.0.1 is one."


def default_tokens(config: PreTrainedConfig) -> int:
    """The tokens that a text may have: as many as the model has positions."""
    from uniattn_pl.families.positions import positions_of

    return positions_of(config) or TOKENS_WITHOUT_POSITIONS


def ready_lines(request: ServeRequest, *, chat: bool) -> list[str]:
    """What is printed once clients are answered: commands that work as they stand."""
    key = None if request.api_key is None else KEY_VARIABLE
    likeliest = {"max_tokens": EXAMPLE_TOKENS, "temperature": 0}
    completion = {"model": request.name, "prompt": EXAMPLE_TEXT, **likeliest}
    lines = [f"serving {request.name} at {request.url}/v1; Ctrl-C ends it. Try:"]
    lines.append(f"  {curl_post(f'{request.url}/v1/completions', completion, key_variable=key)}")
    if chat:
        messages = [{"role": "user", "content": EXAMPLE_QUESTION}]
        conversation = {"model": request.name, "messages": messages, **likeliest}
        lines.append(f"  {curl_post(f'{request.url}/v1/chat/completions', conversation, key_variable=key)}")
    lines.append(f"  {openai_completion(f'{request.url}/v1', completion, key_variable=key)}")
    if request.host not in LOOPBACK:
        who = (
            "whoever has the key" if key else f"everyone who reaches this machine (set {KEY_VARIABLE} to ask for a key)"
        )
        lines.append(f"note: it listens on {request.host}: {who} can use it.")
    return lines
