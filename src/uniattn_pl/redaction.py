"""Removes credentials from all that reaches a manifest, a tracked parameter, an artifact or the terminal."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
# Passwords hold unescaped @ (the last one ends them) and, in database URIs, slashes: there a colon is followed by
# something other than a port. Of the two slashes before, pathlib leaves one.
_IN_AUTHORITY = re.compile(r"(:/{1,2})(?:[^\s/?#@:\[]*:(?!\d+(?:[/?#\s]|$))\S+(?=@)|[^\s/?#]+(?=@))")
_WORD = r"[^=&;#\s]*"
_IN_QUERY = re.compile(
    rf"(?i)([?&;#](?:{_WORD}(?:token|key|passw|passphrase|pwd|secret|signature|credential){_WORD}"
    rf"|(?:{_WORD}[_.-])?(?:auth|authorization|pass|sas|sig))=)[^&\s]+"
)
_SECRET_VARIABLE = re.compile(r"(?i)(?:^|_)(?:token|passw(?:or)?d|secret|(?:access|api|private|secret)_?key(?:_id)?)$")
_SHORTEST_SECRET = 8  # a shorter one would hide ordinary words


def redact(value: Any) -> Any:
    """Return `value` with its credentials replaced by ***, in nested data too.

    Credentials are user:password@ and secret query parameters of URLs, and the values of environment variables named
    like one (HF_TOKEN, MLFLOW_TRACKING_PASSWORD, AWS_SECRET_ACCESS_KEY).
    """
    if isinstance(value, str):
        for secret in _environment_secrets():
            value = value.replace(secret, HIDDEN)
        return _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_AUTHORITY.sub(rf"\1{HIDDEN}", value))
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


def _environment_secrets() -> list[str]:
    """The secrets among the environment's values, the longest first: one may be part of another."""
    # by name: a library's thread may take a variable away while this looks at them
    secrets = {os.environ.get(name, "").strip() for name in list(os.environ) if _SECRET_VARIABLE.search(name)}
    return sorted((text for text in secrets if len(text) >= _SHORTEST_SECRET), key=len, reverse=True)
