"""How alike the attention maps of layers are (paper Figure 2), without ever holding a whole map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from uniattn_pl.calibration.layers import Batch
from uniattn_pl.calibration.maps import map_rows
from uniattn_pl.families.inspection import PUBLICATIONS, attentions_of, decoder_layers, decoder_of
from uniattn_pl.kernels.stock import publish
from uniattn_pl.modeling.attention.published import Publications
from uniattn_pl.modeling.conversion.aliased_copy import aliased_copy
from uniattn_pl.plan.roles import MAP

CHUNK_BYTES = 2**28


@torch.no_grad()
def map_chunks(model: PreTrainedModel, batch: Batch) -> Iterator[torch.Tensor]:
    """Yield attention maps [N, H, C, S] of the N layers that attend for chunks of C queries, padding left out.

    Sequence by sequence; at most about `CHUNK_BYTES` of maps exist at a time, whatever the length.
    """
    watched = aliased_copy(model)
    watched.config.reuse_mode = "replay"
    publish(watched.config)
    attentions = attentions_of(watched)
    for index, attention in attentions.items():
        attention.publishes = frozenset({MAP})
        attention.key_root = attention.last_map_reader = index
    for ids, mask in zip(batch["input_ids"].split(1), batch["attention_mask"].split(1), strict=True):
        length = int(mask.sum())
        publications = Publications()
        inputs = {"input_ids": ids[:, :length].to(model.device), "attention_mask": mask[:, :length].to(model.device)}
        decoder_of(watched)(**inputs, use_cache=False, **{PUBLICATIONS: publications})
        replayed = [publications[index].replayed for index in attentions]
        heads = replayed[0].query.shape[1]
        chunk = max(1, CHUNK_BYTES // (4 * len(replayed) * heads * length))
        for start in range(0, length, chunk):
            stop = min(start + chunk, length)
            yield torch.stack([map_rows(entry, 0, start, stop) for entry in replayed])


def adjacent_similarity(model: PreTrainedModel, batches: Sequence[Batch]) -> list[float | None]:
    """By layer, the mean over queries of the cosine between its head-averaged map and that of the layer below.

    None for layers without attention, and for the first that has one.
    """
    total: torch.Tensor = torch.zeros(0)
    queries = 0
    for batch in batches:
        for maps in map_chunks(model, batch):
            averaged = maps.mean(dim=1)  # [N, C, S]
            cosine = torch.cosine_similarity(averaged[1:], averaged[:-1], dim=-1).double().sum(dim=-1).cpu()
            total = cosine if queries == 0 else total + cosine
            queries += averaged.shape[1]
    layers = list(attentions_of(model))[1:]
    found = dict(zip(layers, (total / max(queries, 1)).tolist(), strict=True))
    return [found.get(index) for index in range(len(decoder_layers(model)))]
