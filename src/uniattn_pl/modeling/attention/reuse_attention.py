"""Role `reuse`: the source's attention map, the layer's own values (UniAttn, Shared Attention)."""

from __future__ import annotations

from typing import Any

import torch

from uniattn_pl.kernels.interface import apply_map
from uniattn_pl.modeling.attention.operated import OperatedAttention
from uniattn_pl.modeling.attention.published import Rotary
from uniattn_pl.modeling.attention.recorded_maps import recorded


class ReuseAttention(OperatedAttention):
    """The source's attention map times this layer's values (paper eq. 12); keeps v_proj and o_proj.

    Cost: no W_q, W_k, QK^T or softmax; caches V alone.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotary | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]  # [B, L]
        own_value = self.projection("v_proj")(hidden_states)  # [B, L, Hkv * Dv]
        value = own_value.view(*shape, -1, self.value_head_dim).transpose(1, 2)  # [B, Hkv, L, Dv]
        if past_key_values is not None:
            # Zero-width keys: the cache keeps values only.
            _, value = past_key_values.update(value[..., :0], value, self.layer_idx)  # [B, Hkv, S, Dv]
        handle = self.published(kwargs).map
        assert handle is not None, "the plan has a map published for this layer"
        heads, attention_map = apply_map(handle, value, self, self.head_index)  # [B, L, H, Dv]
        output = self.finish(heads.reshape(*shape, -1).contiguous(), own_value, hidden_states, kwargs)
        return output, recorded(self, attention_map, output)
