"""Held-out loss when the prompt's cache is compressed before the response is scored (paper Table 3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.inference.prefill import prefill, read_on
from uniattn_pl.losses.response_loss import IGNORED
from uniattn_pl.modeling.caches.h2o_cache import H2OCache
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.modeling.length_rotations import rotated_for


@dataclass(frozen=True)
class Compressed:
    """Mean cross-entropy per response token (nats), and cache bytes per prompt token after compression."""

    response_loss: float
    tokens: int
    kv_bytes_per_token: float


@torch.no_grad()
def compressed_response_loss(
    model: PreTrainedModel, rows: Iterable[dict[str, Any]], retain_rate: float, *, chunk_size: int | None = None
) -> Compressed:
    """Prefill each prompt, keep `retain_rate` of its cache by H2O, score its response.

    Of several responses the first one's prompt is compressed; all of them are scored.

    Args:
        model: converted, or `unmodified_copy` of a stock one.
        rows: batches of one sequence: input_ids, attention_mask and labels [1, L], -100 where not scored.
        retain_rate: fraction of the prompt's tokens to keep; 1 gives the ordinary loss.
        chunk_size: queries per chunk of the prefill; default: by memory.

    Raises:
        ValueError: a batch holds several sequences, or one whose response is empty or starts it.
    """
    total, scored, cached, prompts = 0.0, 0, 0, 0
    for row in rows:
        is_token = row["attention_mask"][0].bool()
        ids, labels = (row[name][:, is_token].to(model.device) for name in ("input_ids", "labels"))
        responses = (labels[0] != IGNORED).nonzero()
        if len(row["input_ids"]) != 1 or not len(responses) or int(responses[0]) == 0:
            raise ValueError("each batch must hold one sequence, with a prompt before its response.")
        start = int(responses[0])
        cache = H2OCache(model, retain_rate)
        with rotated_for(model, ids.shape[1]):
            logits = prefill(model, ids[:, :start], past_key_values=cache, chunk_size=chunk_size).logits[:, -1:]
            cache.compress()
            cached, prompts = cached + kv_cache_bytes(cache), prompts + start
            if ids.shape[1] > start + 1:
                logits = torch.cat([logits, read_on(model, ids[:, start:-1], cache)], dim=1)
        total += float(torch.nn.functional.cross_entropy(logits[0].float(), labels[0, start:], reduction="sum"))
        scored += len(responses)
    return Compressed(total / max(scored, 1), scored, cached / max(prompts, 1))
