"""The kernels that transformers and the family bring: fused ones, and the eager one, which returns its map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from uniattn_pl.families.attention_kernels import WITH_MAPS
from uniattn_pl.families.inspection import family_module
from uniattn_pl.kernels.grouped import additive_mask

PREFIX = "uniattn_"
"""What the attention implementations of converted models begin with, in front of the stock kernel's name."""

EAGER, SDPA, FLEX = "eager", "sdpa", "flex_attention"
Kernel = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


class PublishingName(str):
    """`config._attn_implementation` of a converted model: registered as `uniattn_sdpa`, equal to `sdpa` as well.

    Families decide by that name (MiniMax-M3 masks blocks where it is `in ("eager", "sdpa")`); what they decide must not
    change with a conversion. Its hash is that of the registered name, by which transformers finds the function.
    """

    def __new__(cls, stock: str) -> PublishingName:
        return super().__new__(cls, PREFIX + stock.removeprefix(PREFIX))

    def __eq__(self, other: object) -> bool:
        return str(self) == other or self.removeprefix(PREFIX) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(str(self))


def publish(config: Any) -> None:
    """Have the attentions of this config call the function that publishes, whichever kernel they use."""
    config._attn_implementation = PublishingName(config._attn_implementation or EAGER)


def backend_name(config: Any) -> str:
    """The stock kernel that a config, stock or converted, names: one of `ATTENTION_BACKENDS`."""
    return str(config._attn_implementation).removeprefix(PREFIX)


def settings_of(attention: Any) -> Any:
    """The config that says how maps are read: the model's, of which a decoder beside an encoder may have a copy."""
    return getattr(attention, "settings", attention.config)


def has_maps(config: Any) -> bool:
    """Whether the kernel of this config takes masks that a map can be masked with (FlexAttention's are functions)."""
    return backend_name(config) in WITH_MAPS


def backend_kernel(attention: Any) -> Kernel:
    """The kernel the user chose, by `kernel(attention, query, key, value, mask, **arguments)`."""
    name = backend_name(attention.config)
    return _eager_kernel(attention) if name == EAGER else ALL_ATTENTION_FUNCTIONS[name]


def _eager_kernel(attention: Any) -> Kernel:
    """The family's own; one made for as many keys as queries (T5, BART, OPT) is given merged ones per query head."""
    module = family_module(attention)
    kernel: Kernel = module.eager_attention_forward
    if hasattr(module, "repeat_kv"):
        return kernel

    def repeating(
        of: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **arguments: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if key.shape[1] < query.shape[1]:
            group = query.shape[1] // key.shape[1]
            key, value = (states.repeat_interleave(group, dim=1) for states in (key, value))
        return kernel(of, query, key, value, *args, **arguments)

    return repeating


def eager_attention(
    attention: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    arguments: Mapping[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The family's own plain attention, differentiable, with its map.

    Shapes: query [B, H, L, D], key and value [B, Hkv, S, D], mask of any kind [B or 1, 1 or Hkv, L, S]; returns
    [B, L, H, D] and the map [B, H, L, S].
    """
    mask = additive_mask(mask, query, key)
    if mask is not None and mask.shape[1] > 1:  # one per key head
        mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)  # [B, H, L, S]
    output, attention_map = _eager_kernel(attention)(attention, query, key, value, mask, **arguments)
    assert attention_map is not None, "an eager kernel gives its map"
    return output, attention_map
