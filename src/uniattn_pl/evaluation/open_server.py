"""A server that an evaluation is sent to: whether it answers, what it serves, and whether it can be scored."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from uniattn_pl.errors import UserError

KEY_VARIABLES = ("UNIATTN_PL_API_KEY", "OPENAI_API_KEY")
PROBE = [5, 6, 7]  # ids that every model has
TIMEOUT_S = 30


@dataclass(frozen=True)
class OpenServer:
    """A server that answered.

    Attributes:
        url: up to and without /v1.
        model: the name of what it serves.
        max_length: tokens that a text may have, if it says so.
        key: what it wants to be asked with, from the environment.
    """

    url: str
    model: str
    max_length: int | None
    key: str | None


def open_server(url: str) -> OpenServer:
    """Ask a server what it serves, and whether it gives the log-probabilities of a prompt's tokens.

    Raises:
        UserError: it does not answer, wants another key, is none of this kind, or gives none.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--server '{url}' is no address of a server; it begins with http:// or https://.")
    base = url.rstrip("/").removesuffix("/v1")
    key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
    models = _ask(base, "/v1/models", key).get("data")
    if not isinstance(models, list) or not models or not isinstance(models[0], dict):
        raise UserError(f"--server {url} names no model at {base}/v1/models; is it an OpenAI-compatible server?")
    name, limit = models[0].get("id"), models[0].get("max_model_len")
    asked = {"model": name, "prompt": PROBE, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    answer = _ask(base, "/v1/completions", key, asked)
    try:
        given = len(answer["choices"][0]["logprobs"]["token_logprobs"])
    except (LookupError, TypeError):  # none, or in another place
        given = 0
    if given <= len(PROBE):
        raise UserError(
            f"--server {url} gives no log-probabilities of a prompt's tokens (echo with logprobs), by which answers "
            "are scored; `uniattn-pl serve` and vLLM do, llama.cpp does not."
        )
    return OpenServer(base, str(name), limit if isinstance(limit, int) else None, key)


def _ask(base: str, path: str, key: str | None, body: dict[str, Any] | None = None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    try:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(base + path, data, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            answer = json.loads(response.read())
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise UserError(
                f"--server: {base} wants a key ({error.code}); put it into {KEY_VARIABLES[0]} in the environment."
            ) from error
        said = error.read(300).decode(errors="replace")
        raise UserError(f"--server: {base}{path} answers {error.code}: {said}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"--server: nothing that can be used answers at {base}{path} ({reason}).") from error
    if not isinstance(answer, dict):
        raise UserError(f"--server: {base}{path} answers with something else than a JSON object.")
    return answer
