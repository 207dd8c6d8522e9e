"""What source layers give the layers that read from them, and the attention function that makes them give it.

A source layer keeps its stock forward: the attention function registered here sees its final queries, keys
and values and publishes what its readers need. Published state travels in the forward's keyword arguments: never
through the cache (absent in training) and never on a module (stale under gradient checkpointing).
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask, flex_attention_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from uniattn_pl.families.inspection import STATE_KEY, family_module
from uniattn_pl.kernels.grouped import (
    MapBuffers,
    causal_mask,
    grouped_attention,
    is_plain,
    map_bytes,
    map_limit,
    masked_span,
)

if TYPE_CHECKING:
    from uniattn_pl.modeling.caches.h2o_cache import H2OCache

PREFIX = "uniattn_"
Rotary = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Published:
    """What one source layer gives its readers.

    `attention_map` [B, H, L, S] is set when materialised; `query` [B, H, L, D] and `key` [B, Hkv, S, D] when
    replayed; `key` and `value` [B, Hkv, S, D] when they are shared, and `position_embeddings` (cosine and sine
    [B, L, D]) that a reader's queries need to match them. `mask` and `kwargs` are the source's own.
    """

    attention_map: torch.Tensor | None = None
    query: torch.Tensor | None = None
    key: torch.Tensor | None = None
    value: torch.Tensor | None = None
    position_embeddings: Rotary | None = None
    mask: torch.Tensor | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)


class SharedState(UserDict[int, Published]):
    """Source layer index -> Published, for one forward. A UserDict, because FSDP2 casts plain dicts it finds.

    `late` holds, by layer and only inside that layer's forward, what its W_c adds after the feed-forward; `buffers`
    is the memory for maps that are kept; `eviction` the cache, where it gives tokens up.
    """

    def __init__(self, buffers: MapBuffers | None = None, eviction: H2OCache | None = None) -> None:
        super().__init__()
        self.eviction = eviction
        self.late: dict[int, torch.Tensor] = {}
        self.buffers = MapBuffers() if buffers is None else buffers
        self.buffers.begin_forward()
        self._masked: dict[int, tuple[torch.Tensor, tuple[int, int]]] = {}

    def masked_span(self, mask: torch.Tensor) -> tuple[int, int]:
        """Of a mask that the layers of this forward have in common, looked at once."""
        if id(mask) not in self._masked:
            self._masked[id(mask)] = mask, masked_span(mask)  # kept, so that no other mask gets its id
        return self._masked[id(mask)][1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SharedState:
        """Move every tensor, as accelerate asks when layers live on several devices."""
        for index, entry in self.items():
            moved: dict[str, Any] = {
                name: value.to(device, non_blocking=non_blocking)
                for name, value in vars(entry).items()
                if isinstance(value, torch.Tensor)
            }
            self[index] = replace(entry, **moved)
        return self


def stock_attention(attention: Any) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The kernel the user chose (eager or sdpa), without publishing."""
    name = attention.config._attn_implementation.removeprefix(PREFIX)
    if name == "eager":
        return family_module(attention).eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def publishing_attention(
    attention: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend as the stock kernel does, and publish what this layer's readers need.

    Shapes: query [B, H, L, D], key and value [B, Hkv, S, D]; returns output [B, L, H, D].
    """
    state: SharedState | None = kwargs.pop(STATE_KEY, None)
    if state is None:
        return stock_attention(attention)(attention, query, key, value, attention_mask, **kwargs)
    source_of_map = "map" in attention.publishes
    keeps_map = source_of_map and (state.eviction is not None or _materialises(attention, query, key))
    if attention.publishes:
        entry = state.setdefault(attention.layer_idx, Published())
        entry.mask, entry.kwargs = attention_mask, kwargs
        if "key_value" in attention.publishes:
            entry.key, entry.value = key, value
        if source_of_map and not keeps_map:
            entry.query, entry.key = query, key
    eviction = state.eviction
    observes = eviction is not None and eviction.observes(attention.key_root)
    if eviction is not None:
        attention_mask = eviction.visible(attention.key_root, attention_mask)
    wants_map = keeps_map or observes
    if _can_group(attention, query, kwargs) and (wants_map or _groups_faster(attention, query, key)):
        output, attention_map = _grouped(attention, state, (query, key, value), attention_mask, kwargs)
    elif wants_map:
        eager = family_module(attention).eager_attention_forward
        mask = additive_mask(attention_mask, query, key)
        if mask is not None and mask.shape[1] > 1:  # one per key head
            mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
        output, attention_map = eager(attention, query, key, value, mask, **kwargs)
    else:
        return stock_attention(attention)(attention, query, key, value, attention_mask, **kwargs)
    if keeps_map:
        entry.attention_map = attention_map
    if eviction is not None and observes:
        eviction.observe(attention.key_root, attention_map, key.shape[1], attention_mask)
    return output, attention_map


def _materialises(attention: Any, query: torch.Tensor, key: torch.Tensor) -> bool:
    """Keep the map, or keep Q and K? auto: keep it where it is computed anyway (eager), is one row (decoding), or is
    small and needs no gradient (a chunk of a prompt). FlexAttention's masks are functions that fit no map."""
    mode = attention.config.reuse_mode
    if not has_maps(attention.config):
        return False
    if mode != "auto":
        return bool(mode == "materialise")
    if _is_eager(attention) or query.shape[-2] == 1:
        return True
    small = map_bytes(query, key) <= map_limit(attention.config, query.device)
    return small and not torch.is_grad_enabled()


def has_maps(config: Any) -> bool:
    """Whether the kernel of this config takes masks that a map can be masked with."""
    return config._attn_implementation.removeprefix(PREFIX) in ("sdpa", "eager")


def _is_eager(attention: Any) -> bool:
    return bool(attention.config._attn_implementation == PREFIX + "eager")


def _can_group(attention: Any, query: torch.Tensor, arguments: dict[str, Any]) -> bool:
    """Whether the grouped kernel computes what this layer's own one would, and nothing needs its gradient or graph."""
    plain = has_maps(attention.config) and not _is_eager(attention) and is_plain(arguments)
    return plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _groups_faster(attention: Any, query: torch.Tensor, key: torch.Tensor) -> bool:
    """Where a layer whose map nobody reads is faster with one: on a CPU, for queries over a cache longer than they."""
    if query.device.type != "cpu" or query.shape[-2] == key.shape[-2]:
        return False
    return map_bytes(query, key) <= map_limit(attention.config, query.device)


def _grouped(
    attention: Any,
    state: SharedState,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    arguments: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    layer = attention.layer_idx

    def take(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return state.buffers.take(layer, attention.last_reader, shape, like)

    scaling = arguments.get("scaling")
    return grouped_attention(*tensors, mask, scaling=scaling, take=take, masked_span=state.masked_span)


def additive_mask(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """Turn an sdpa mask (boolean, or None for causal) into the additive mask [B, 1, L, S] an eager kernel adds."""
    mask = causal_mask(mask, query, key)
    if mask is not None and mask.dtype == torch.bool:
        zeros = torch.zeros((), dtype=query.dtype, device=query.device)
        mask = torch.where(mask, zeros, torch.finfo(query.dtype).min)
    return mask


for _name, _mask in (("sdpa", sdpa_mask), ("eager", eager_mask), ("flex_attention", flex_attention_mask)):
    AttentionInterface.register(PREFIX + _name, publishing_attention)
    AttentionMaskInterface.register(PREFIX + _name, _mask)


def publish_positions(attention: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a source of keys: its rotary tables, which its kernel never sees.

    Layers of one model may have different ones (Gemma-3: one base for local, one for global layers).
    """
    kwargs[STATE_KEY][attention.layer_idx] = Published(position_embeddings=kwargs["position_embeddings"])
