"""Whether a family's cross-attention can use another layer's map, decided by running it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.families.encoder_decoder import beside_encoder
from uniattn_pl.families.inspection import PUBLICATIONS, cross_attention_of, decoder_layers, decoder_of
from uniattn_pl.kernels.stock import has_maps
from uniattn_pl.modeling.attention.cross_maps import ATTENDS_TO_ENCODER
from uniattn_pl.modeling.attention.operate import operate_cross
from uniattn_pl.modeling.attention.published import Publications, Published
from uniattn_pl.modeling.conversion.probing import INPUT_SCALES, LENGTH, by_keyword, differ, publishing_copy
from uniattn_pl.plan import LayerRow
from uniattn_pl.plan.roles import MAP


@torch.no_grad()
def wrong_cross_attentions(model: PreTrainedModel, layers: list[int]) -> list[int]:
    """Of `layers`, those whose cross-attention does not give its own output where it reads its map from itself.

    With maps that are kept and that are computed again, with its own inputs and with enlarged ones.
    """
    calls = _calls(model, layers)
    return [index for index in layers if _is_wrong(cross_attention_of(decoder_layers(model)[index]), calls[index])]


def _calls(model: PreTrainedModel, layers: list[int]) -> dict[int, dict[str, Any]]:
    """What the cross-attention of `layers` is called with in one forward over random tokens and random states."""
    calls: dict[int, dict[str, Any]] = {}
    handles = []
    for index in layers:

        def record(_: Any, args: Any, kwargs: dict[str, Any], index: int = index) -> None:
            calls[index] = by_keyword(args, kwargs)

        attention = cross_attention_of(decoder_layers(model)[index])
        handles.append(attention.register_forward_pre_hook(record, with_kwargs=True))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, LENGTH), generator=generator).to(model.device)
    beside = {
        name: torch.randn(states.shape, generator=generator).to(states)
        for name, states in beside_encoder(model, LENGTH + 1).items()
    }
    try:
        decoder_of(model)(input_ids=ids, use_cache=False, **beside)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _is_wrong(stock: Any, call: dict[str, Any]) -> bool:
    keeps = has_maps(stock.config) and call["hidden_states"].dtype == torch.float32  # as of self-attention
    return any(
        _differs(stock, {**call, "hidden_states": call["hidden_states"] * scale}, mode)
        for mode in (("replay", "materialise") if keeps else ("replay",))
        for scale in INPUT_SCALES
    )


def _differs(stock: Any, call: dict[str, Any], mode: str) -> bool:
    expected, *_ = stock(**call)
    own, elsewhere = stock.layer_idx, stock.layer_idx + 1  # whose publication is its own
    source, reader = publishing_copy(stock, mode), publishing_copy(stock, mode)
    for twin in (source, reader):
        setattr(twin, ATTENDS_TO_ENCODER, True)
    source.publishes = frozenset({MAP})
    operate_cross(reader, LayerRow(own, "reuse", elsewhere, cross_map=True))
    publications = Publications()
    publications[own] = publications[elsewhere] = Published()
    source(**call, **{PUBLICATIONS: publications})
    output, *_ = reader(**call, **{PUBLICATIONS: publications})
    return differ(output, expected)
