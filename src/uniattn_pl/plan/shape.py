"""The sizes of a model, as far as plans and costs need them; no weights, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Heads:
    """The heads of one layer's attention.

    Attributes:
        queries: H.
        groups: Hkv, heads of keys and values.
        size: D, of a query and of a key.
        value_size: Dv, of a value; D in most families.
        latent: r, of a latent that is cached in place of keys and values (DeepSeek); 0: there is none.
        rotary: R, of the part of a key beside the latent that is rotated, one for all heads.
    """

    queries: int
    groups: int
    size: int
    value_size: int
    latent: int = 0
    rotary: int = 0

    @property
    def key_width(self) -> int:
        """Numbers per token in the keys, Hkv * D."""
        return self.groups * self.size

    @property
    def value_width(self) -> int:
        """Numbers per token in the values, Hkv * Dv."""
        return self.groups * self.value_size

    @property
    def cached_key_width(self) -> int:
        """Numbers per token that the cache keeps for keys alone."""
        return self.rotary if self.latent else self.key_width

    @property
    def cached_value_width(self) -> int:
        """Numbers per token that the cache keeps for values: a latent serves the keys as well."""
        return self.latent or self.value_width

    @property
    def query_width(self) -> int:
        """Numbers per token in the queries, H * D."""
        return self.queries * self.size

    @property
    def output_width(self) -> int:
        """Numbers per token in what enters W_o, H * Dv."""
        return self.queries * self.value_size

    def __str__(self) -> str:
        size = f"{self.size}" if self.size == self.value_size else f"{self.size}, of values {self.value_size}"
        of_latent = f", of a latent of {self.latent} and {self.rotary} rotated" if self.latent else ""
        return f"{self.queries} heads over {self.groups} of size {size}{of_latent}"


NO_HEADS = Heads(0, 0, 0, 0)
"""Of a layer without attention."""


@dataclass(frozen=True)
class Experts:
    """The routed experts of one layer's feed-forward.

    Attributes:
        count: how many there are.
        per_token: how many of them compute for a token.
        matrices: weights of one expert that are multiplied with a token.
        biases: what else one has.
    """

    count: int
    per_token: int
    matrices: int
    biases: int = 0

    @property
    def parameters(self) -> int:
        """Of all experts."""
        return self.count * (self.matrices + self.biases)

    def read(self, tokens: int) -> float:
        """Parameters that `tokens` tokens of one forward read: those of every expert that serves any of them.

        Expected for a router that sends each token to `per_token` experts at random, independently of the others: an
        expert stays unread with probability (1 - k/E)^T, so E * (1 - (1 - k/E)^T) are read. Real routers have
        favourites, and neighbouring tokens common ones, so that they read fewer.
        """
        return (1.0 - (1.0 - self.per_token / self.count) ** tokens) * self.parameters


@dataclass(frozen=True)
class CrossAttention:
    """A decoder layer's attention to the states of an encoder.

    Attributes:
        heads: its heads; their keys and values are cached once for every token of the source.
        of_text: weights of W_q and W_o, which the decoder's tokens pass.
        of_source: weights of W_k and W_v, which the encoder's states pass, once.
        query, key: of these, the weights of W_q and of W_k.
        beside_map: what else serves queries and keys alone: their biases, and a norm before the queries.
        computes_map: whether it makes its own map, of queries and keys.
    """

    heads: Heads
    of_text: int
    of_source: int
    query: int = 0
    key: int = 0
    beside_map: int = 0
    computes_map: bool = True

    @property
    def cached_width(self) -> int:
        """Numbers that it keeps of each token of the source."""
        return self.computes_map * self.heads.key_width + self.heads.value_width

    @property
    def pair_width(self) -> int:
        """Multiply-adds per pair of a query and a token of the source."""
        return self.computes_map * self.heads.query_width + self.heads.output_width


@dataclass(frozen=True)
class LayerShape:
    """Parameter counts of one decoder layer, split by what a plan can remove, its heads, and its window in tokens.

    `latent` is what keys and values have in common, `gate` what acts on the attention's output beside W_o.
    `feed_forward` are the matrices that every token passes (shared experts and the router among them), `experts` those
    that a router chooses from. `state` and `wide_state` are the numbers that a recurrence or a convolution keeps of a
    sequence, however long it is, in the model's dtype and in float32. A layer without attention has `NO_HEADS`.
    """

    heads: Heads
    query: int
    key: int
    value: int
    output: int
    query_norm: int = 0
    key_norm: int = 0
    latent: int = 0
    gate: int = 0
    attention_norms: int = 0
    feed_forward: int = 0
    experts: Experts | None = None
    other: int = 0
    window: int | None = None
    cross: CrossAttention | None = None
    state: int = 0
    wide_state: int = 0

    def without_cross_map(self) -> LayerShape:
        """The layer with a cross-attention that has no queries and keys of its own."""
        cross = self.cross
        if cross is None:
            return self
        left = replace(
            cross,
            of_text=cross.of_text - cross.query,
            of_source=cross.of_source - cross.key,
            query=0,
            key=0,
            beside_map=0,
            computes_map=False,
        )
        return replace(self, cross=left, other=self.other - cross.beside_map)

    def with_kv_heads(self, groups: int) -> LayerShape:
        """The layer with so many heads of keys and values; a norm over all keys (OLMo-2) shrinks with them."""
        former = self.heads
        whole_norm = former.groups > 1 and self.key_norm % former.key_width == 0
        return replace(
            self,
            heads=replace(former, groups=groups),
            key=self.key * groups // former.groups,
            value=self.value * groups // former.groups,
            key_norm=self.key_norm * groups // former.groups if whole_norm else self.key_norm,
        )


@dataclass(frozen=True)
class ModelShape:
    """What plans and costs need to know of a model: hidden size `d`, vocabulary, layers; no weights.

    `positions` are the tokens of the longest text that it was made for (`families/positions.py`). Of an encoder-decoder
    model all is the decoder's, and `encoder` is the rest: its layers, and as its `embedding` what lies outside of them
    and is not the decoder's too.
    """

    model_type: str
    hidden_size: int
    vocab_size: int
    embedding: int
    layers: tuple[LayerShape, ...]
    positions: int | None = None
    encoder: ModelShape | None = None

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that attend: all, but in hybrids."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.heads != NO_HEADS)
