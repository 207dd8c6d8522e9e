"""A cache layer with room to grow, and caches that exporters of graphs can trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from uniattn_pl.kernels.map_memory import may_write

# Tokens that a growing layer has to spare at least, and the shares of what it holds. For a token a 64th: copied that
# often, a cache costs a step 3 % of reading it, and a quarter more would take all that a plan saves. For another chunk
# of a prompt a quarter, which the next chunks fill.
ROOM, SHARE_FOR_TOKENS, SHARE_FOR_CHUNKS = 64, 64, 4


_TRACED: ContextVar[bool] = ContextVar("caches are traced", default=False)
TRACED = "traced"


@contextmanager
def traced_caches() -> Iterator[None]:
    """Let caches that are made inside hold tensors and plain values only, which exporters of graphs can trace."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)


def traced() -> bool:
    """Whether caches that are made now are traced."""
    return _TRACED.get()


class GrowingLayer(DynamicLayer):
    """A layer of keys and values [B, Hkv, S, D] with room to grow, so that a new token copies nothing but itself.

    `keys` and `values` are views of what is used; the stock layer copies all of both for every token.
    """

    def __init__(self) -> None:
        super().__init__()
        self._room: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, Hkv, L, D]; returns all keys and values."""
        # A graph may still need what room holds; an exported one has no memory that goes on.
        if value_states.requires_grad or _TRACED.get():
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", key_states)
        self.values = self._append("values", value_states)
        return self.keys, self.values

    def reset(self) -> None:
        """Forget everything, room included."""
        super().reset()
        self._room = {}

    def _append(self, name: str, states: torch.Tensor) -> torch.Tensor:
        held, room = getattr(self, name), self._room.get(name)
        past = held.shape[-2] if held.dim() == states.dim() else 0
        length = past + states.shape[-2]
        # Cropping leaves a view of the room's beginning; selecting or repeating sequences makes a tensor of its own.
        begins_room = room is not None and held.data_ptr() == room.data_ptr() and held.stride() == room.stride()
        if room is None or length > room.shape[-2] or (past and not begins_room) or not may_write(room):
            share = SHARE_FOR_CHUNKS if past and states.shape[-2] > 1 else SHARE_FOR_TOKENS
            room = states.new_empty(*states.shape[:2], length + max(ROOM, length // share), states.shape[-1])
            room[..., :past, :] = held if past else room[..., :0, :]
            self._room[name] = room
        room[..., past:length, :] = states
        return room[..., :length, :]
