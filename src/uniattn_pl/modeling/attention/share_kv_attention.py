"""Role `share_kv`: the layer's own queries over the keys and values of its source (CLA)."""

from __future__ import annotations

from typing import Any, cast

import torch

from uniattn_pl.families.inspection import PUBLICATIONS, family_module
from uniattn_pl.modeling.attention.operated import OperatedAttention
from uniattn_pl.modeling.attention.published import Rotary
from uniattn_pl.modeling.attention.publishing import publishing_attention


class ShareKVAttention(OperatedAttention):
    """The layer's own queries over the source's keys and values (CLA, paper eq. 7); keeps q_proj and o_proj.

    Cost: no W_k, W_v; caches nothing.
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
        source = self.published(kwargs)
        query = self._query(hidden_states)  # [B, H, L, D]
        if source.position_embeddings is not None:  # Granite 4 rotates nothing
            # Rotated by the source's tables: they must match its keys.
            rotate = family_module(self).apply_rotary_pos_emb
            query, _ = rotate(query, query[:, :1], *source.position_embeddings)
        key, value = cast("torch.Tensor", source.key), cast("torch.Tensor", source.value)  # [B, Hkv, S, D or Dv]
        # Others may reuse the map this layer computes.
        arguments = {**source.arguments, PUBLICATIONS: kwargs[PUBLICATIONS]}
        heads, attention_map = publishing_attention(self, query, key, value, source.mask, **arguments)  # [B, L, H, Dv]
        return self.finish(heads.reshape(*shape, -1).contiguous(), None, hidden_states, kwargs), attention_map

    def _query(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Queries [B, H, L, D] before rotation; a norm is over each head (Qwen3, Gemma-3) or over all (OLMo-2)."""
        query = self.projection("q_proj")(hidden_states)  # [B, L, H * D]
        per_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        norm = getattr(self, "q_norm", None)
        if norm is None:
            query = query.view(per_head)  # [B, L, H, D]
        elif getattr(norm, "weight", None) is None or norm.weight.shape[-1] == self.head_dim:
            query = norm(query.view(per_head))  # over D
        else:
            query = norm(query).view(per_head)  # over H * D
        return query.transpose(1, 2)  # [B, H, L, D]
