"""Role `heads`: fewer heads of keys and values (MQA, GQA)."""

from __future__ import annotations

from uniattn_pl.modeling.attention.complete_attention import CompleteAttention


class HeadsAttention(CompleteAttention):
    """The family's attention with heads of keys and values merged by `merged_heads.py`.

    Cost: of W_k, W_v and of the cache the share n / Hkv.
    """
