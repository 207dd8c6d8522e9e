"""Dataclass fields that carry their help and bounds: of the experiment's sections and of every architecture."""

from __future__ import annotations

from dataclasses import field
from typing import Any

# What a whole number may be at most, unless its field says less: nothing that is counted here is more, and sums and
# products of two still fit the 64 bits of tensors and databases.
LARGEST = 2**31 - 1


def option(
    default: Any,
    help: str,
    *,
    allowed: tuple[Any, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    path: bool = False,
) -> Any:
    """A dataclass field that carries its help text and its admissible values.

    Args:
        minimum, maximum: inclusive, of every number; whole numbers are at most `LARGEST` anyway.
        path: a file or folder, or text that may name one: `~` and `$VARIABLE` in it are expanded as it is loaded.
    """
    metadata = {"help": help, "allowed": allowed, "minimum": minimum, "maximum": maximum, "path": path}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
