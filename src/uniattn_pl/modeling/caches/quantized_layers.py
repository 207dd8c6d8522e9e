"""Layers of a quantised cache under a plan: values without keys, and the bytes that such layers really hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from transformers.cache_utils import BaseQuantizedLayer

from uniattn_pl.modeling.caches.value_only_layers import OneOfTwo


class _NothingToQuantize:
    """Passes tensors without elements by the quantisers, none of which takes them."""

    def _quantize(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super()._quantize(tensor, *args, **kwargs) if tensor.numel() else (tensor, None)  # type: ignore[misc]

    def _dequantize(self, held: Any) -> torch.Tensor:
        if isinstance(held, tuple) and held[1] is None:
            nothing: torch.Tensor = held[0]
            return nothing
        tensor: torch.Tensor = super()._dequantize(held)  # type: ignore[misc]
        return tensor


@cache
def _one_of_two(kind: type) -> Any:
    return type(f"ValueOnly{kind.__name__}", (OneOfTwo, _NothingToQuantize, kind), {})


def value_only_quantized(source: BaseQuantizedLayer) -> Any:
    """An empty layer that holds values alone, quantised as by another, which is empty too."""
    kind = _one_of_two(type(source))
    layer = kind.__new__(kind)
    vars(layer).update(vars(source))
    return layer


def quantized_bytes(layer: BaseQuantizedLayer) -> int:
    """Bytes of what a layer holds: packed numbers, scales and zero points, and the tokens it keeps as they are."""
    held = (layer._quantized_keys, layer._quantized_values, layer.keys, layer.values)
    return sum(tensor.numel() * tensor.element_size() for tensor in _plain_tensors(held))


def _plain_tensors(held: Any) -> Iterator[torch.Tensor]:
    if isinstance(held, torch.Tensor):
        if hasattr(held, "__tensor_flatten__"):  # one that is made of others, as quanto's
            yield from _plain_tensors([getattr(held, name) for name in held.__tensor_flatten__()[0]])
        else:
            yield held
    elif isinstance(held, Mapping):
        yield from _plain_tensors(list(held.values()))
    elif isinstance(held, list | tuple):
        for part in held:
            yield from _plain_tensors(part)
