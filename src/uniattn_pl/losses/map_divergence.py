"""How far a source's attention map is from the maps that its readers had in the original model.

A source that is trained so serves its readers: IndexCache (arXiv:2603.12201) trains it against their mean map, which is
the sum of divergences here up to a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROWS = 128  # queries whose maps are held at once
HIDDEN = -1e30  # score of a pair that is not seen: finite, so that 0 x log 0 is 0


@dataclass(frozen=True)
class MapInputs:
    """What a layer makes its map of: queries [B, H, L, D] and keys [B, Hkv, L, D], both rotated."""

    queries: Tensor
    keys: Tensor


def map_divergence(
    source: MapInputs,
    readers: Sequence[MapInputs],
    segments: Tensor,
    *,
    scaling: float,
    window: int | None = None,
    rows: int = ROWS,
) -> Tensor:
    """Return sum over readers r of the mean over heads and tokens t of KL(A_r[t] || A_source[t]), in float32.

    KL(p || q) = sum_j p_j (log p_j - log q_j), over the keys j that t sees. Only `source` gets a gradient. The maps of
    `rows` queries are held at a time, [B, H, rows, L], and computed again in the backward pass.

    Args:
        source: of the student's source layer.
        readers: of the original's layers that read the source's map; head h is held against the source's head h.
        segments: int64 [B, L]; a token sees those of its own segment up to itself. Negative: padding.
        scaling: of the scores.
        window: keys that a token sees at most, itself among them; None: all.
    """
    targets = [MapInputs(reader.queries.detach(), reader.keys.detach()) for reader in readers]
    length = segments.shape[1]
    total = torch.zeros((), device=segments.device)
    for first in range(0, length, rows):
        # a block sees no key behind its last query
        last = min(first + rows, length)
        seen = _seen(segments[:, :last], first, window)
        total = total + checkpoint(_block, source, targets, seen, first, scaling, use_reentrant=False)
    heads, tokens = source.queries.shape[1], (segments >= 0).sum().clamp(min=1)
    return total / (heads * tokens)


def _block(source: MapInputs, readers: Sequence[MapInputs], seen: Tensor, first: int, scaling: float) -> Tensor:
    """The sum over readers, heads and the queries from `first` on, whose pairs `seen` [B, 1, rows, S] says."""
    log_q = _log_map(source, seen, first, scaling)
    scored = seen.any(-1, keepdim=True)  # padding sees nothing
    total = torch.zeros((), device=seen.device)
    for reader in readers:
        log_p = _log_map(reader, seen, first, scaling)
        total = total + (log_p.exp() * (log_p - log_q) * scored).sum()
    return total


def _log_map(layer: MapInputs, seen: Tensor, first: int, scaling: float) -> Tensor:
    """Log softmax of the scores [B, H, rows, S] of a block of queries, in float32."""
    rows, keys = seen.shape[-2:]
    queries = layer.queries[:, :, first : first + rows].float()
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    grouped = layer.keys[:, :, :keys].float().repeat_interleave(groups, dim=1)  # [B, H, S, D]
    scores = queries @ grouped.transpose(-1, -2) * scaling
    return nn.functional.log_softmax(scores.masked_fill(~seen, HIDDEN), dim=-1)


def _seen(segments: Tensor, first: int, window: int | None) -> Tensor:
    """Bool [B, 1, rows, S]: which of the S keys the queries from `first` to S see."""
    keys = torch.arange(segments.shape[1], device=segments.device)
    queries = keys[first:, None]
    near = keys <= queries
    if window is not None:
        near = near & (keys > queries - window)
    same = (segments[:, first:, None] == segments[:, None]) & (segments[:, None] >= 0)
    return (near & same)[:, None]
