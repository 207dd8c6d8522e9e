"""A decoding step's attention that keeps its row of scores, and the product of that row with a reader's values.

Bound per layer, B sequences over S keys: a source reads B Hkv S (D + Dv) elements of cache and writes 4 B H S bytes of
scores; a reader reads B Hkv S Dv elements and the scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from uniattn_pl.kernels.map_handles import HeadIndex
from uniattn_pl.kernels.triton_maps.kept_tiles import block_of, launching_on, precision_of, rows_whole

MOST_COLUMNS, COLUMN_BYTES = 64, 2**14
"""Keys that a program reads at once, and their bytes: several such stages are in the shared memory of a card."""
MOST_SPLITS = 64
PROGRAMS_PER_PROCESSOR = 2
PROCESSORS_OF_AN_INTERPRETER = 4


@dataclass(frozen=True)
class RowMap:
    """One row of a map: scores [B, H, S] and the log2 of the sum of their exponentials [B, H], both to the base 2."""

    logits: torch.Tensor
    lse: torch.Tensor

    def apply(self, value: torch.Tensor, attention: Any, heads: HeadIndex | None) -> tuple[torch.Tensor, None]:
        """`row_product`, and no map: there is none as a whole."""
        return row_product(self, value, heads), None

    def to(self, device: torch.device | str, *, non_blocking: bool) -> RowMap:
        """The same on another device."""
        return RowMap(*(tensor.to(device, non_blocking=non_blocking) for tensor in (self.logits, self.lse)))


def row_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, RowMap]:
    """Attend with one query per sequence, and keep its scores; not differentiable.

    Args:
        query: [B, H, 1, D].
        key, value: [B, Hkv, S, D] and [B, Hkv, S, Dv]; views into longer buffers will do.
        mask: boolean [B or 1, 1 or Hkv, 1, S], True: sees; what it hides is not read. None: all are seen.
        scaling: of the products; None: 1 / sqrt(D).
        softcap: c of c tanh(s / c).
        sinks: one score per head [H] that has no value.

    Returns:
        The output [B, 1, H, Dv] and the row.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    run = _row_source_op if torch.compiler.is_compiling() else row_source
    output, logits, lse = run(query, key, value, mask, sinks, scale, softcap or 0.0)
    return output, RowMap(logits, lse)


def row_product(row_map: RowMap, value: torch.Tensor, heads_from: HeadIndex | None = None) -> torch.Tensor:
    """A row times the values [B, Hkv, S, Dv] of another layer: [B, 1, H, Dv].

    Args:
        row_map: of the source.
        value: the reader's own.
        heads_from: which head of the source serves each head; None: the one of its index.
    """
    run = _row_reader_op if torch.compiler.is_compiling() else row_reader
    return run(row_map.logits, row_map.lse, value, None if heads_from is None else heads_from.on(value.device))


def row_source(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    sinks: torch.Tensor | None,
    scale: float,
    cap: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output [B, 1, H, Dv], scores [B, H, S] and lse [B, H] of `row_attention`; a cap of 0 is none."""
    from uniattn_pl.kernels.triton_maps.row_kernels import combine_kernel, row_source_kernel

    batch, heads, _, head_dim = query.shape
    kv_heads, keys, value_dim = value.shape[1:]
    query, key, value = (rows_whole(tensor) for tensor in (query, key, value))
    columns = columns_of(key)
    splits, chunk = split(batch * kv_heads, keys, columns, query.device)
    facts: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
    output = query.new_empty(batch, 1, heads, value_dim)
    logits, lse = torch.empty(batch, heads, keys, **facts), torch.empty(batch, heads, **facts)
    partial = torch.empty(batch, heads, splits, value_dim, **facts)
    maxima, totals = torch.empty(2, batch, heads, splits, **facts)
    seen = None if mask is None else mask.expand(batch, kv_heads, 1, keys)
    with launching_on(query.device):
        row_source_kernel[batch * kv_heads, splits](
            query,
            key,
            value,
            seen,
            logits,
            partial,
            maxima,
            totals,
            *query.stride()[:2],
            *key.stride()[:3],
            *value.stride()[:3],
            *((0, 0, 0) if seen is None else (seen.stride(0), seen.stride(1), seen.stride(3))),
            kv_heads,
            keys,
            chunk,
            splits,
            scale,
            cap,
            has_mask=mask is not None,
            has_cap=cap != 0,
            precision=precision_of(query.dtype),
            group=heads // kv_heads,
            group_block=block_of(heads // kv_heads),
            columns=columns,
            head_size=head_dim,
            value_size=value_dim,
            head_block=block_of(head_dim),
            value_block=block_of(value_dim),
        )
        combine_kernel[(batch * heads,)](
            partial,
            maxima,
            totals,
            sinks,
            output,
            lse,
            heads,
            splits,
            weighted=True,
            has_sinks=sinks is not None,
            split_block=1 << (splits - 1).bit_length(),
            value_size=value_dim,
            value_block=block_of(value_dim),
        )
    return output, logits, lse


def row_reader(
    logits: torch.Tensor, lse: torch.Tensor, value: torch.Tensor, heads_from: torch.Tensor | None
) -> torch.Tensor:
    """Output [B, 1, H, Dv] of `row_product`; `heads_from` [H]."""
    from uniattn_pl.kernels.triton_maps.row_kernels import combine_kernel, row_reader_kernel

    batch, source_heads, _ = logits.shape
    kv_heads, keys, value_dim = value.shape[1:]
    heads = source_heads if heads_from is None else len(heads_from)
    value = rows_whole(value)
    columns = columns_of(value)
    splits, chunk = split(batch * kv_heads, keys, columns, value.device)
    partial = torch.empty(batch, heads, splits, value_dim, dtype=torch.float32, device=value.device)
    output = value.new_empty(batch, 1, heads, value_dim)
    with launching_on(value.device):
        row_reader_kernel[batch * kv_heads, splits](
            logits,
            lse,
            value,
            heads_from,
            partial,
            *value.stride()[:3],
            kv_heads,
            source_heads,
            keys,
            chunk,
            splits,
            aligned=heads_from is not None,
            precision=precision_of(value.dtype),
            group=heads // kv_heads,
            group_block=block_of(heads // kv_heads),
            columns=columns,
            value_size=value_dim,
            value_block=block_of(value_dim),
        )
        combine_kernel[(batch * heads,)](
            partial,
            None,
            None,
            None,
            output,
            None,
            heads,
            splits,
            weighted=False,
            has_sinks=False,
            split_block=1 << (splits - 1).bit_length(),
            value_size=value_dim,
            value_block=block_of(value_dim),
        )
    return output


def columns_of(cached: torch.Tensor) -> int:
    """How many keys or values [.., S, D] a program reads at once: a power of two, 16 at least."""
    return max(16, min(MOST_COLUMNS, COLUMN_BYTES // (block_of(cached.shape[-1]) * cached.element_size())))


def split(pairs: int, keys: int, columns: int, device: torch.device) -> tuple[int, int]:
    """Into how many parts a cache of `keys` tokens is split, so that every processor has work, and keys of one part.

    Args:
        pairs: of sequences and key heads, each of which is split.
        keys: S.
        columns: keys that a program reads at once.
        device: whose processors are counted.
    """
    wanted = -(-PROGRAMS_PER_PROCESSOR * _processors(device) // pairs)
    blocks = -(-keys // columns)
    chunk = -(-blocks // min(wanted, blocks, MOST_SPLITS)) * columns
    return -(-keys // chunk), chunk


@lru_cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return PROCESSORS_OF_AN_INTERPRETER
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


# torch.compile does not look into these: a graph of the step holds them as they are.
_row_source_op = torch.library.custom_op("uniattn_pl::row_source", row_source, mutates_args=())
_row_reader_op = torch.library.custom_op("uniattn_pl::row_reader", row_reader, mutates_args=())


@_row_source_op.register_fake
def _row_source_shapes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    sinks: torch.Tensor | None,
    scale: float,
    cap: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, heads = query.shape[:2]
    lse = query.new_empty(batch, heads, dtype=torch.float32)
    logits = query.new_empty(batch, heads, key.shape[2], dtype=torch.float32)
    return query.new_empty(batch, 1, heads, value.shape[-1]), logits, lse


@_row_reader_op.register_fake
def _row_reader_shapes(
    logits: torch.Tensor, lse: torch.Tensor, value: torch.Tensor, heads_from: torch.Tensor | None
) -> torch.Tensor:
    heads = logits.shape[1] if heads_from is None else len(heads_from)
    return value.new_empty(len(value), 1, heads, value.shape[-1])
