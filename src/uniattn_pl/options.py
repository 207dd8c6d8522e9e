"""Dataclass fields that carry their help and bounds: of the experiment's sections and of every architecture."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, help: str, *, allowed: tuple[Any, ...] = (), minimum: float | None = None) -> Any:
    """A dataclass field that carries its help text and its admissible values."""
    metadata = {"help": help, "allowed": allowed, "minimum": minimum}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
