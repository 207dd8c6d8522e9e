"""Credentials never reach a manifest, a tracked parameter or an artifact."""

from __future__ import annotations

import re
from typing import Any

_IN_AUTHORITY = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_IN_QUERY = re.compile(r"(?i)([?&][^=&]*(?:token|key|password|secret|signature)[^=&]*=)[^&\s]+")


def redact(value: Any) -> Any:
    """Return `value` with user:password@ and secret query parameters of URLs replaced by ***, in nested data too."""
    if isinstance(value, str):
        return _IN_QUERY.sub(r"\1***", _IN_AUTHORITY.sub("***", value))
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value
