"""Cross-layer similarity of attention maps (paper Figure 2), in variants by what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from uniattn_pl.calibration.layers import Batch
from uniattn_pl.search.map_similarity import map_chunks

VARIANTS = {
    "head_averaged": "maps averaged over heads (the paper's figure)",
    "concatenated": "all heads of a layer as one vector",
    "per_head": "each head against the head of its index, then averaged",
    "best_match": "each head against the head most like it, then averaged",
    "without_sink": "per head, without the first token and renormalised",
}


@dataclass(frozen=True)
class MapSimilarity:
    """Mean cosines between rows of attention maps.

    Args:
        adjacent: by variant, one value per layer but the bottom one, against the layer below.
        matrix: head-averaged, every layer against every layer [N, N].
        head_matches: by layer but the bottom one, for each head the head of the layer below most like it.
    """

    adjacent: dict[str, list[float]]
    matrix: list[list[float]]
    head_matches: list[list[int]]


@torch.no_grad()
def map_similarity(model: PreTrainedModel, batches: Sequence[Batch]) -> MapSimilarity:
    """Measure every variant in one pass; maps exist a few query rows at a time, whatever the length.

    Args:
        model: stock.
        batches: input_ids and attention_mask [B, L].
    """
    sums: dict[str, torch.Tensor] = {}
    queries, inner_queries = 0, 0
    for batch in batches:
        for maps in map_chunks(model, batch):
            queries += maps.shape[2]
            for name, value in _chunk_sums(maps).items():
                sums[name] = sums[name] + value if name in sums else value
        # The first query of a sequence sees nothing but the sink.
        inner_queries += int((batch["attention_mask"].sum(dim=1) - 1).clamp_min(0).sum())
    pairs = sums.pop("head_pairs") / queries
    adjacent = {name: (sums[name] / queries).tolist() for name in ("head_averaged", "concatenated", "per_head")}
    adjacent["best_match"] = pairs.amax(dim=-1).mean(dim=-1).tolist()
    adjacent["without_sink"] = (sums["without_sink"] / max(inner_queries, 1)).tolist()
    return MapSimilarity(adjacent, (sums["matrix"] / queries).tolist(), pairs.argmax(dim=-1).tolist())


def _chunk_sums(maps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cosines of maps [N, H, C, S], summed over the C queries."""
    averaged = normalize(maps.mean(dim=1), dim=-1)
    per_head = normalize(maps, dim=-1)
    joint = normalize(maps.transpose(1, 2).flatten(2), dim=-1)  # [N, C, H * S]
    rest = normalize(maps[..., 1:], dim=-1)  # a cosine does not see the renormalisation
    matrix = torch.einsum("ncs,mcs->nm", averaged, averaged).double().cpu()
    pairs = torch.einsum("nhcs,ngcs->nhg", per_head[1:], per_head[:-1]).double().cpu()
    return {
        "matrix": matrix,
        "head_averaged": matrix.diagonal(offset=1).clone(),
        "concatenated": (joint[1:] * joint[:-1]).sum(dim=(1, 2)).double().cpu(),
        "per_head": pairs.diagonal(dim1=1, dim2=2).mean(dim=-1),
        "head_pairs": pairs,
        "without_sink": (rest[1:] * rest[:-1]).sum(dim=(2, 3)).mean(dim=1).double().cpu(),
    }
