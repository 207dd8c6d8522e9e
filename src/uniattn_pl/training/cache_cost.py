"""What the cache of a converted model really holds, against what its plan predicts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.families.encoder_decoder import reading
from uniattn_pl.modeling.caches.plan_cache import CacheMismatchError, kv_cache_bytes
from uniattn_pl.plan import LayerPlan, ModelShape, costs
from uniattn_pl.tracking.fit_result import CacheCost


def measure_cache(model: PreTrainedModel, plan: LayerPlan, shape: ModelShape) -> CacheCost:
    """Run one sequence, count the bytes its cache really holds, and compare them with the plan's.

    Raises:
        CacheMismatchError: they differ, so that either the model or the cost functions are wrong.
    """
    length = min(costs.CACHE_LENGTH, getattr(model.config, "max_position_embeddings", None) or costs.CACHE_LENGTH)
    tokens = torch.arange(length, device=model.device).unsqueeze(0) % shape.vocab_size  # [1, L]
    with torch.no_grad():
        output = model(**reading(model, tokens), use_cache=True)
    size: dict[str, Any] = {"batch_size": 1, "length": length, "bytes_per_element": model.dtype.itemsize}
    cost = CacheCost(
        length=length,
        measured=kv_cache_bytes(output.past_key_values),
        predicted=costs.kv_cache_bytes(plan, shape, **size),
        unmodified=costs.kv_cache_bytes(LayerPlan.stock(shape), shape, **size),
    )
    if cost.measured != cost.predicted:
        raise CacheMismatchError(
            f"the KV cache of {length} tokens holds {cost.measured} bytes, the plan predicts {cost.predicted}."
        )
    return cost
