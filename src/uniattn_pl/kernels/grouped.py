"""Attention that keeps its map: products of grouped queries with keys and values that are never expanded.

One query over a long cache, or a chunk of queries over it, makes a map that is small enough to keep; computed into
memory that is used again, it costs no more than a fused kernel, and readers of the map pay for their values only.
Bound per layer, B sequences, L queries over S keys: 4 B L H S D FLOPs (a reader: 2 B L H S D), and one read of
2 B Hkv S D elements of cache (a reader: half).
"""

from __future__ import annotations

from collections.abc import Callable

import torch


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
    rows = query.reshape(batch * groups, -1, size)  # [B * Hkv, G * L, D]: the G = H / Hkv queries of one key head
    scores = take((batch * groups, rows.shape[1], total), query)  # [B * Hkv, G * L, S]
    scale = size**-0.5 if scaling is None else scaling
    keys = key.flatten(0, 1)  # [B * Hkv, S, D]
    if length == 1:
        # In this order a CPU reads the keys as they lie in their room; in the other it first copies them.
        columns = take((batch * groups, total, rows.shape[1]), query)  # [B * Hkv, S, G]
        torch.mul(torch.bmm(keys, rows.transpose(1, 2), out=columns).transpose(1, 2), scale, out=scores)
    else:
        # [B * Hkv, G * L, D] times [B * Hkv, D, S]
        torch.baddbmm(scores, rows, keys.transpose(1, 2), beta=0, alpha=scale, out=scores)
    # as [B, Hkv, G, L, S]
    _mask(scores.view(batch, groups, -1, length, total), causal_mask(mask, query, key), masked_span)
    # The CPU kernel reads each row whole before it writes it; others promise no such thing.
    attention_map = torch.softmax(scores, -1, out=scores if scores.device.type == "cpu" else None)
    output = grouped_product(attention_map.view(batch, heads, length, total), value)  # [B, L, H, D]
    return output, attention_map.view(batch, heads, length, total)  # [B, H, L, S]


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
        scores += mask.unsqueeze(2)  # [B or 1, 1, 1, L, S]
        return
    first, end = masked_span(mask)
    if first < end:
        # The least number rather than -inf: rows of padding are masked everywhere.
        scores[..., first:end].masked_fill_(~mask[..., first:end].unsqueeze(2), torch.finfo(scores.dtype).min)


def masked_span(mask: torch.Tensor) -> tuple[int, int]:
    """First, and one past the last, column of a boolean mask [B, 1, L, S] that is False for any query."""
    masked = (~mask).flatten(0, -2).any(dim=0).nonzero()  # columns, of [B * L, S]
    return (int(masked[0]), int(masked[-1]) + 1) if len(masked) else (0, 0)


def grouped_product(attention_map: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`attention_map` [B, H, L, S] times `value` [B, Hkv, S, D] without repeating values; returns [B, L, H, D]."""
    batch, heads, length, total = attention_map.shape
    grouped = attention_map.reshape(batch, value.shape[1], -1, total) @ value  # [B, Hkv, G * L, D]
    return grouped.view(batch, heads, length, -1).transpose(1, 2)  # [B, L, H, D]


def aligned_product(attention_map: torch.Tensor, heads_from: tuple[int, ...], value: torch.Tensor) -> torch.Tensor:
    """As `grouped_product`, head h with the map of head `heads_from[h]`, none of which is copied."""
    group = len(heads_from) // value.shape[1]
    outputs = [attention_map[:, source] @ value[:, head // group] for head, source in enumerate(heads_from)]
    return torch.stack(outputs, dim=2)


def additive_mask(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """Turn an sdpa mask (boolean, or None for causal) into the additive mask [B, 1, L, S] an eager kernel adds."""
    mask = causal_mask(mask, query, key)
    if mask is not None and mask.dtype == torch.bool:
        zeros = torch.zeros((), dtype=query.dtype, device=query.device)
        mask = torch.where(mask, zeros, torch.finfo(query.dtype).min)
    return mask
