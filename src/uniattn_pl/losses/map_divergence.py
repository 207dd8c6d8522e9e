"""How far a source's attention map is from the maps that its readers had in the original model.

A source that is trained so serves its readers: IndexCache (arXiv:2603.12201) trains it against their mean map, which is
the sum of divergences here up to a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROWS = 128  # queries whose maps are held at once
HIDDEN = -1e30  # score of a pair that is not seen: finite, so that 0 x log 0 is 0


@dataclass(frozen=True)
class MapInputs:
    """What a layer makes its map of.

    Attributes:
        queries, keys: [B, H, L, D] and [B, Hkv, L, D], both rotated.
        scaling: of the scores.
        window: keys that a token sees at most, itself among them; None: all.
        softcap: c of c tanh(score / c), where the scores are capped.
        heads_from: of a reader, head h is served by the source's head `heads_from[h]`; None: by head h.
    """

    queries: Tensor
    keys: Tensor
    scaling: float
    window: int | None = None
    softcap: float | None = None
    heads_from: Sequence[int] | None = None


def map_divergence(
    source: MapInputs, readers: Sequence[MapInputs], segments: Tensor, counted: Tensor, *, rows: int = ROWS
) -> Tensor:
    """Return sum over readers r and counted tokens t of the mean over heads h of KL(A_r,h[t] || A_source,g(h)[t]).

    KL(p || q) = sum_j p_j (log p_j - log q_j), over the keys j that t sees, in float32 also under autocast; g(h) is the
    source's head that serves h. Only `source` gets a gradient. The maps of `rows` queries are held at a time,
    [B, H, rows, L], and computed again in the backward pass.

    Args:
        source: of the student's source layer.
        readers: of the original's layers that read the source's map; none of them sees further than the source.
        segments: int64 [B, L]; a token sees those of its own segment up to itself. Negative: padding.
        counted: bool [B, L], the queries that count.
    """
    targets = [replace(reader, queries=reader.queries.detach(), keys=reader.keys.detach()) for reader in readers]
    length = segments.shape[1]
    total = torch.zeros((), device=segments.device)
    for first in range(0, length, rows):
        # a block sees no key behind its last query
        last = min(first + rows, length)
        within = segments[:, :last], counted[:, first:last]
        total = total + checkpoint(_block, source, targets, *within, first, use_reentrant=False)
    return total


def _block(source: MapInputs, readers: Sequence[MapInputs], segments: Tensor, counted: Tensor, first: int) -> Tensor:
    """The sum over readers and the queries from `first` to the last of `segments` [B, S], those `counted` [B, rows]."""
    with torch.autocast(segments.device.type, enabled=False):
        of_source = _log_map(source, segments, first)  # [B, H of the source, rows, S]
        total = torch.zeros((), device=segments.device)
        for reader in readers:
            log_p = _log_map(reader, segments, first)
            log_q = of_source if reader.heads_from is None else of_source[:, list(reader.heads_from)]
            divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean(1)  # [B, rows]
            total = total + (divergence * counted).sum()
    return total


def _log_map(layer: MapInputs, segments: Tensor, first: int) -> Tensor:
    """Log softmax of the scores [B, H, rows, S] of the queries from `first` on, in float32."""
    groups, keys = layer.keys.shape[1], segments.shape[1]
    queries = layer.queries[:, :, first:keys].float()
    # queries [B, Hkv, H / Hkv * rows, D] share their keys [B, Hkv, S, D]
    grouped = queries.unflatten(1, (groups, -1)).flatten(2, 3)
    scores = grouped @ layer.keys[:, :, :keys].float().transpose(-1, -2) * layer.scaling
    scores = scores.unflatten(2, (-1, queries.shape[2])).flatten(1, 2)  # [B, H, rows, S]
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    return nn.functional.log_softmax(scores.masked_fill(~_seen(segments, first, layer.window), HIDDEN), dim=-1)


def _seen(segments: Tensor, first: int, window: int | None) -> Tensor:
    """Bool [B, 1, rows, S]: which of the S keys the queries from `first` to S see."""
    keys = torch.arange(segments.shape[1], device=segments.device)
    queries = keys[first:, None]
    near = keys <= queries
    if window is not None:
        near = near & (keys > queries - window)
    same = (segments[:, first:, None] == segments[:, None]) & (segments[:, None] >= 0)
    return (near & same)[:, None]
