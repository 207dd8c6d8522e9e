"""The attention function of converted models: attends as the stock kernel does, and publishes what readers need.

A source layer keeps its stock forward: transformers calls the function registered here with the layer's final
queries, keys and values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask, flash_attention_mask, flex_attention_mask, sdpa_mask

from uniattn_pl.families.attention_kernels import FLASH_PACKAGES
from uniattn_pl.families.inspection import PUBLICATIONS
from uniattn_pl.kernels.interface import AttentionRequest, attend
from uniattn_pl.kernels.map_handles import SINKS
from uniattn_pl.kernels.stock import EAGER, FLEX, PREFIX, SDPA, backend_kernel
from uniattn_pl.modeling.attention.cross_maps import is_cross
from uniattn_pl.modeling.attention.foreign_hooks import refuse_presses
from uniattn_pl.modeling.attention.forwarded_readers import ForwardedReuse, ForwardedShareKV
from uniattn_pl.modeling.attention.published import Publications, Published
from uniattn_pl.modeling.attention.recorded_maps import recorded
from uniattn_pl.plan.roles import KEY_VALUE, MAP


def publishing_attention(
    attention: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *by_position: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend, and leave in `kwargs[PUBLICATIONS]` what this layer's readers need.

    Shapes: query [B, H, L, D], key and value [B, Hkv, S, D]; returns output [B, L, H, D], and the map to record.

    Raises:
        UserError: a press of another library chooses the tokens of a layer that others read.
    """
    if by_position:  # kvpress wraps every attention function, and passes the dropout on so
        (kwargs["dropout"],) = by_position
    publications: Publications | None = kwargs.pop(PUBLICATIONS, None)
    if publications is None:  # an encoder's
        return backend_kernel(attention)(attention, query, key, value, attention_mask, **kwargs)
    if isinstance(attention, ForwardedReuse):
        return attention.read_map(value, publications)
    if is_cross(attention):
        return _attend_to_encoder(attention, (query, key, value), attention_mask, kwargs, publications)
    if isinstance(attention, ForwardedShareKV):
        key, value, attention_mask, kwargs = attention.of_source(publications, kwargs)
    if attention.publishes and not torch.compiler.is_compiling():
        refuse_presses(attention)
    if attention.publishes and kwargs.get(SINKS) is not None:  # a parameter, which FSDP2 frees before readers run
        kwargs[SINKS] = kwargs[SINKS].clone()
    eviction, root = publications.eviction, attention.key_root
    observed = eviction is not None and eviction.observes(root)
    visible = attention_mask if eviction is None else eviction.visible(root, attention_mask)

    request = _request(attention, kwargs, publications)
    request = replace(request, visible_mask=visible, map_observed=observed, evicting=eviction is not None)
    attended = attend(query, key, value, attention_mask, request)
    if attention.publishes:
        entry = publications.setdefault(attention.layer_idx, Published())
        entry.map, entry.mask, entry.arguments = attended.handle, attention_mask, kwargs
        if KEY_VALUE in attention.publishes:
            entry.key, entry.value = key, value
    if eviction is not None and observed and attended.attention_map is not None:
        eviction.observe(root, attended.attention_map, key.shape[1], visible)
    return attended.output, recorded(attention, attended.attention_map, attended.output)


def _attend_to_encoder(
    attention: Any,
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    arguments: dict[str, Any],
    publications: Publications,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same of cross-attention, whose map other layers may use, too; no mask stands for all of the source."""
    if not attention.publishes:
        output, attention_map = backend_kernel(attention)(attention, *states, mask, **arguments)
        return output, recorded(attention, attention_map, output)
    request = replace(_request(attention, arguments, publications), visible_mask=mask, causal=False)
    attended = attend(*states, mask, request)
    publications[attention.layer_idx].cross = Published(attended.handle, mask=mask, arguments=arguments)
    return attended.output, recorded(attention, attended.attention_map, attended.output)


def _request(attention: Any, arguments: dict[str, Any], publications: Publications) -> AttentionRequest:
    """What a layer wants of its attention, with a mask and a cache that give nothing up."""

    def take(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return publications.buffers.take(attention.layer_idx, attention.last_map_reader, shape, like)

    return AttentionRequest(
        attention=attention,
        arguments=arguments,
        visible_mask=None,
        map_read=MAP in attention.publishes,
        map_observed=False,
        evicting=False,
        take=take,
        masked_span=publications.masked_span,
        structure=publications.structure,
    )


def publish_positions(attention: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a source of keys: its rotary tables, which its kernel never sees.

    Layers of one model may have different ones (Gemma-3: one base for local, one for global layers).
    """
    kwargs[PUBLICATIONS][attention.layer_idx] = Published(position_embeddings=kwargs.get("position_embeddings"))


# An implementation unknown to the mask registry would get no mask at all.
_MASKS: dict[str, Any] = {SDPA: sdpa_mask, EAGER: eager_mask, FLEX: flex_attention_mask}
_MASKS |= dict.fromkeys(FLASH_PACKAGES, flash_attention_mask)
for _name, _mask in _MASKS.items():
    AttentionInterface.register(PREFIX + _name, publishing_attention)
    AttentionMaskInterface.register(PREFIX + _name, _mask)
