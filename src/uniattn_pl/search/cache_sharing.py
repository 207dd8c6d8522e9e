"""What KVSharer (arXiv 2410.18517) asks of a model: how far apart caches are, and what sharing does at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from uniattn_pl.calibration.layers import Batch
from uniattn_pl.families.inspection import decoder_of
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan

POSITIONS = 64
"""The authors' code cuts calibration rows there."""


@torch.no_grad()
def cache_distances(model: PreTrainedModel, batches: Sequence[Batch]) -> list[list[float]]:
    """By two layers, the Euclidean distance between their average keys and values; -inf where their heads differ.

    The caches [Hkv, S, D] of all rows are averaged by position, over rows that have it; between two layers the norms
    of the differences [D] are averaged over heads and positions, and keys count as much as values (the authors' code).

    Args:
        model: stock.
        batches: input_ids and attention_mask [B, L], right padded.
    """
    sums: list[list[torch.Tensor]] = []
    rows = torch.zeros(1, POSITIONS, 1, device=model.device)
    for batch in batches:
        ids, mask = (batch[name][:, :POSITIONS].to(model.device) for name in ("input_ids", "attention_mask"))
        cache = DynamicCache()  # without a config: windowed layers keep every token, too
        decoder_of(model)(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        held = mask[:, None, :, None].float()
        rows[:, : mask.shape[1]] += held.sum(0)
        for index, layer in enumerate(cache.layers):
            kept: Any = (layer.keys, layer.values)  # type: ignore[union-attr]  # [B, Hkv, S, D]
            parts = [(states.float() * held).sum(0) for states in kept]
            if index == len(sums):
                sums.append([part.new_zeros(part.shape[0], POSITIONS, part.shape[2]) for part in parts])
            for total, part in zip(sums[index], parts, strict=True):
                total[:, : part.shape[1]] += part
    seen = rows[0, :, 0] > 0
    means = [[(part / rows.clamp_min(1))[:, seen] for part in layer] for layer in sums]
    return [[_distance(one, other) for other in means] for one in means]


def _distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    if any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return float("-inf")
    return sum(float((a - b).norm(dim=-1).mean()) for a, b in zip(one, other, strict=True)) / 2


class FinalStates:
    """The hidden states behind the final norm of the original, with which those of a plan are compared."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.model, self.batches = model, batches
        self.original = list(_final_states(model, batches))

    def similarity(self, plan: LayerPlan) -> float:
        """The cosine between the states of a row [L * d], under `plan` and under none; its mean over the rows."""
        planned = _final_states(converted_copy(self.model, plan), self.batches)
        cosines = [torch.cosine_similarity(a, b, dim=-1) for a, b in zip(planned, self.original, strict=True)]
        return float(torch.cat(cosines).mean())


@torch.no_grad()
def _final_states(model: PreTrainedModel, batches: Sequence[Batch]) -> Iterator[torch.Tensor]:
    """By batch, final hidden states [B, L * d] in float32, zero at padding."""
    for batch in batches:
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        hidden = decoder_of(model)(**inputs, use_cache=False).last_hidden_state
        yield (hidden.float() * inputs["attention_mask"][..., None]).flatten(1)
