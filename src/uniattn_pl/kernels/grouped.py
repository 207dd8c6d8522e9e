"""Attention that keeps its map: products of grouped queries with keys and values that are never expanded.

One query over a long cache, or a chunk of queries over it, makes a map that is small enough to keep; computed into
memory that is used again, it costs no more than a fused kernel, and readers of the map pay for their values only.
Bound per layer, B sequences, L queries over S keys: 4 B L H S D FLOPs (a reader: 2 B L H S D), and one read of
2 B Hkv S D elements of cache (a reader: half).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

GROWTH = 1.5
MAP_BYTES = {"cpu": 2**26}
MAP_BYTES_ELSEWHERE = 2**30
CHUNKS = {"cpu": 256}  # measured: 512 gains nothing and masks more of the diagonal
CHUNK_ELSEWHERE = 2048
SMALLEST_CHUNK = 16
KNOWN_ARGUMENTS = {"scaling", "dropout", "sliding_window", "is_causal", "position_ids", "use_cache", "return_dict"}


class MapBuffers:
    """Memory for attention maps, taken again by later layers and later forwards.

    A map lives until the last layer that reads it; a plan whose maps do not overlap needs one buffer.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._last_readers: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> MapBuffers:
        return MapBuffers()  # what is in them has been read

    def begin_forward(self) -> None:
        """Every map of the forward before is over."""
        self._last_readers = [-1] * len(self._buffers)

    def take(self, layer: int, last_reader: int, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Uninitialised memory of a shape, of the dtype and on the device of `like`, until `last_reader` is done."""
        slot = next((slot for slot, last in enumerate(self._last_readers) if last < layer), None)
        if slot is None:
            slot = len(self._buffers)
            self._buffers.append(like.new_empty(0))
            self._last_readers.append(-1)
        self._last_readers[slot] = last_reader
        size = torch.Size(shape).numel()
        buffer = self._buffers[slot]
        fits = buffer.numel() >= size and buffer.dtype == like.dtype and buffer.device == like.device
        if not fits or not may_write(buffer):
            room = max(int(buffer.numel() * GROWTH), size + size // 8)  # the next token's map is a little longer
            self._buffers[slot] = like.new_empty(0)  # given back before more is asked for
            self._buffers[slot] = buffer = like.new_empty(room)
        return buffer[:size].view(shape)


def may_write(buffer: torch.Tensor) -> bool:
    """Memory from inference mode cannot be written to outside of it."""
    return torch.is_inference_mode_enabled() or not buffer.is_inference()


def map_bytes(query: torch.Tensor, key: torch.Tensor) -> int:
    """Bytes of the attention map of query [B, H, L, D] over key [B, Hkv, S, D]."""
    batch, heads, length, _ = query.shape
    return batch * heads * length * key.shape[-2] * query.element_size()


def map_limit(config: Any, device: torch.device) -> int:
    """Bytes one map may take: the config's `map_memory_mib`, or what suits the device."""
    limit = getattr(config, "map_memory_mib", None)
    return MAP_BYTES.get(device.type, MAP_BYTES_ELSEWHERE) if limit is None else int(limit * 2**20)


def is_plain(arguments: dict[str, Any]) -> bool:
    """Whether softmax(scale * Q K^T + mask) V is all that a layer asks of its kernel: no sinks, caps or biases."""
    return all(value is None or name in KNOWN_ARGUMENTS for name, value in arguments.items())


def grouped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float | None,
    take: Callable[[tuple[int, ...], torch.Tensor], torch.Tensor],
    masked_span: Callable[[torch.Tensor], tuple[int, int]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend, and return the map as well; not differentiable.

    Args:
        query: [B, H, L, D].
        key: [B, Hkv, S, D], H a multiple of Hkv; a view into a longer buffer will do.
        value: [B, Hkv, S, D].
        mask: boolean (True: attend) or additive [B or 1, 1, L, S]; None: causal from the top left, as sdpa has it.
        scaling: of the products; None: 1 / sqrt(D).
        take: gives memory for the map, and for what leads to it (`MapBuffers.take`).
        masked_span: gives the first and one past the last column that a boolean mask masks anywhere.

    Returns:
        The output [B, L, H, D] and the map [B, H, L, S], which lives in the memory taken.
    """
    batch, heads, length, size = query.shape
    groups, total = key.shape[1], key.shape[2]
    rows = query.reshape(batch * groups, -1, size)
    scores = take((batch * groups, rows.shape[1], total), query)
    scale = size**-0.5 if scaling is None else scaling
    keys = key.flatten(0, 1)
    if length == 1:
        # In this order a CPU reads the keys as they lie in their room; in the other it first copies them.
        columns = take((batch * groups, total, rows.shape[1]), query)
        torch.mul(torch.bmm(keys, rows.transpose(1, 2), out=columns).transpose(1, 2), scale, out=scores)
    else:
        torch.baddbmm(scores, rows, keys.transpose(1, 2), beta=0, alpha=scale, out=scores)
    _mask(scores.view(batch, groups, -1, length, total), causal_mask(mask, query, key), masked_span)
    # The CPU kernel reads each row whole before it writes it; others promise no such thing.
    attention_map = torch.softmax(scores, -1, out=scores if scores.device.type == "cpu" else None)
    output = grouped_product(attention_map.view(batch, heads, length, total), value)
    return output, attention_map.view(batch, heads, length, total)


def causal_mask(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """The mask an sdpa kernel is given, where it means something: None stands for causal, unless there is one query."""
    length, total = query.shape[-2], key.shape[-2]
    if mask is not None or length == 1:
        return mask
    # As sdpa's is_causal: from the top left. A static cache is longer than what was prefilled.
    return torch.ones(length, total, dtype=torch.bool, device=query.device).tril()[None, None]


def _mask(
    scores: torch.Tensor, mask: torch.Tensor | None, masked_span: Callable[[torch.Tensor], tuple[int, int]]
) -> None:
    """Mask scores [B, Hkv, G, L, S] in place; of a boolean mask only the columns that it masks anywhere."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        scores += mask.unsqueeze(2)
        return
    first, end = masked_span(mask)
    if first < end:
        # The least number rather than -inf: rows of padding are masked everywhere.
        scores[..., first:end].masked_fill_(~mask[..., first:end].unsqueeze(2), torch.finfo(scores.dtype).min)


def masked_span(mask: torch.Tensor) -> tuple[int, int]:
    """First, and one past the last, column of a boolean mask [B, 1, L, S] that is False for any query."""
    masked = (~mask).flatten(0, -2).any(dim=0).nonzero()
    return (int(masked[0]), int(masked[-1]) + 1) if len(masked) else (0, 0)


def grouped_product(attention_map: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`attention_map` [B, H, L, S] times `value` [B, Hkv, S, D] without repeating values; returns [B, L, H, D]."""
    batch, heads, length, total = attention_map.shape
    grouped = attention_map.reshape(batch, value.shape[1], -1, total) @ value
    return grouped.view(batch, heads, length, -1).transpose(1, 2)


def aligned_product(attention_map: torch.Tensor, heads_from: tuple[int, ...], value: torch.Tensor) -> torch.Tensor:
    """As `grouped_product`, head h with the map of head `heads_from[h]`, none of which is copied."""
    group = len(heads_from) // value.shape[1]
    outputs = [attention_map[:, source] @ value[:, head // group] for head, source in enumerate(heads_from)]
    return torch.stack(outputs, dim=2)


def automatic_chunk(config: Any, device: torch.device, dtype: torch.dtype, *, batch_size: int, length: int) -> int:
    """Queries of a prompt of `length` tokens to process together, so that one attention map keeps to `map_limit`.

    A power of two, at most what keeps the matrix products of the device busy.
    """
    heads = config.get_text_config().num_attention_heads
    per_query = batch_size * heads * length * dtype.itemsize
    most = CHUNKS.get(device.type, CHUNK_ELSEWHERE)
    fits = max(map_limit(config, device) // max(per_query, 1), SMALLEST_CHUNK)
    return min(most, 1 << (int(fits).bit_length() - 1))
