"""A decoder in which one layer is run and the others hand on what they get: not every layer runs without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

HANDED_ON: tuple[Callable[..., Any], ...] = (
    lambda hidden, *_, **__: hidden,
    lambda hidden, *_, **__: (hidden,),
    lambda hidden, *_, **__: (hidden, None),
)
"""What a layer does that is passed by; some decoders take the first of what a layer gives, or two."""


@contextmanager
def passed_by(layers: Iterable[nn.Module], handed_on: Callable[..., Any], *, but: nn.Module) -> Iterator[None]:
    """Let layers do `handed_on` instead of their own forward, all `but` one."""
    others = [layer for layer in layers if layer is not but]
    for layer in others:
        layer.forward = handed_on
    try:
        yield
    finally:
        for layer in others:
            del layer.forward
