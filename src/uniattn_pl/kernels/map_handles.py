"""What stands for an attention map between its source and its readers: the map itself, or what it is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from uniattn_pl.kernels.grouped import aligned_product, grouped_product
from uniattn_pl.kernels.stock import EAGER, backend_kernel, backend_name


class HeadIndex:
    """Which head of the source serves each head; its tensor is made once per device.

    Not a buffer: models are built on the meta device, where one that is not saved would stay without values.
    """

    def __init__(self, heads: Sequence[int]) -> None:
        self.heads = tuple(heads)
        self._tensors: dict[torch.device, torch.Tensor] = {}

    def on(self, device: torch.device) -> torch.Tensor:
        """The indices [H] on a device."""
        if device not in self._tensors:
            self._tensors[device] = torch.tensor(self.heads, device=device)
        return self._tensors[device]

    def of(self, per_head: torch.Tensor) -> torch.Tensor:
        """Of the source's heads [B, H, ...], the one that serves each head of the reader."""
        return per_head[:, self.on(per_head.device)]


SINKS = "s_aux"
"""What kernels call the logits [H] that take part in a softmax beside the tokens (gpt-oss)."""


class _WithSinks:
    """A reader with the sinks of its source: eager kernels read them off the attention, others take them by name."""

    def __init__(self, attention: Any, sinks: torch.Tensor) -> None:
        self.attention, self.sinks = attention, sinks

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attention, name)


class MapHandle(Protocol):
    """An attention map that values can be multiplied with."""

    def apply(
        self, value: torch.Tensor, attention: Any, heads: HeadIndex | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map times values [B, Hkv, S, D]: [B, L, H, D], and the map [B, H, L, S] where there is one."""

    def to(self, device: torch.device | str, *, non_blocking: bool) -> MapHandle:
        """The same on another device."""


@dataclass(frozen=True)
class KeptMap:
    """The map [B, H, L, S] itself (materialise)."""

    attention_map: torch.Tensor

    def apply(
        self, value: torch.Tensor, attention: Any, heads: HeadIndex | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One product per reader, values never repeated."""
        attention_map = self.attention_map
        if heads is None:
            return grouped_product(attention_map, value), attention_map
        # One row is copied faster than taken apart; eager attention is asked for its maps.
        whole = backend_name(attention.config) == EAGER or torch.compiler.is_compiling()
        if attention_map.shape[-2] == 1 or whole:
            aligned = heads.of(attention_map)
            return grouped_product(aligned, value), aligned
        return aligned_product(attention_map, heads.heads, value), attention_map

    def to(self, device: torch.device | str, *, non_blocking: bool) -> KeptMap:
        """The same on another device."""
        return KeptMap(self.attention_map.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class ReplayedMap:
    """What the map is computed from: query [B, H, L, D], key [B, Hkv, S, D], mask and arguments of the source."""

    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    arguments: Mapping[str, Any]

    def apply(
        self, value: torch.Tensor, attention: Any, heads: HeadIndex | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The stock kernel once more, with other values; gradients reach the source's queries and keys."""
        query, key, arguments, kernel = self.query, self.key, self.arguments, backend_kernel(attention)
        sinks = arguments.get(SINKS)
        if sinks is not None and heads is not None:
            sinks = sinks[heads.on(sinks.device)]
            arguments = {**arguments, SINKS: sinks}
        if heads is not None:
            # Aligned heads need not lie in the group of their values: every head gets its own key and value.
            count = query.shape[1]
            query, key = heads.of(query), heads.of(key.repeat_interleave(count // key.shape[1], dim=1))  # [B, H, ., D]
            value = value.repeat_interleave(count // value.shape[1], dim=1)  # [B, H, S, D]
        elif key.shape[1] < value.shape[1]:  # the source's were merged; kernels want as many keys as values
            key = key.repeat_interleave(value.shape[1] // key.shape[1], dim=1)  # [B, Hkv, S, D]
        reader = attention if sinks is None else _WithSinks(attention, sinks)
        return kernel(reader, query, key, value, self.mask, **arguments)

    def to(self, device: torch.device | str, *, non_blocking: bool) -> ReplayedMap:
        """The same on another device."""
        query, key = (tensor.to(device, non_blocking=non_blocking) for tensor in (self.query, self.key))
        mask = self.mask
        if isinstance(mask, torch.Tensor):
            mask = mask.to(device, non_blocking=non_blocking)
        return replace(self, query=query, key=key, mask=mask)
