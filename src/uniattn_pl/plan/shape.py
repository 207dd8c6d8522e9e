"""The sizes of a model, as far as plans and costs need them; no weights, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerShape:
    """Parameter counts of one decoder layer, split by what a plan can remove, and its window in tokens."""

    query: int
    key: int
    value: int
    output: int
    query_norm: int = 0
    key_norm: int = 0
    attention_norms: int = 0
    feed_forward: int = 0
    other: int = 0
    window: int | None = None


@dataclass(frozen=True)
class ModelShape:
    """What plans and costs need to know of a model: sizes (hidden `d`, heads `H`, `Hkv`, head `D`), no weights."""

    model_type: str
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    embedding: int
    layers: tuple[LayerShape, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layers)
