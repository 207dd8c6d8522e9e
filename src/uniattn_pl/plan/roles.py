"""What a layer's attention can be: one entry per role, from which costs, caches, checks and drawings follow.

A new role is an entry here and an attention in `modeling/attention/` (docs/extending.md lists the steps).
"""

from __future__ import annotations

from dataclasses import dataclass

MAP, KEY_VALUE = "map", "key_value"
# What a plan saves by, in words for figures and tables; MIXED: by several of them.
REUSED, SHARED_KV, DROPPED, WINDOWED, MERGED_HEADS = "reuse", "shared KV", "dropped", "windows", "heads"
MECHANISMS = (REUSED, SHARED_KV, DROPPED, WINDOWED, MERGED_HEADS)
UNMODIFIED, MIXED = "unmodified", "mixed"
QUERY, KEY, VALUE, OUTPUT = "query", "key", "value", "output"
KEYS, VALUES = "keys", "values"
KV_HEADS, WINDOW = "kv_heads", "window"
HEAD_MERGES = (MEAN, FIT) = ("mean", "fit")


@dataclass(frozen=True)
class Role:
    """What one kind of attention computes, caches, reads from its source, gives to its readers, and looks like.

    Attributes:
        summary: what such a layer does, in words.
        projections: of query, key, value, output (W_q, W_k, W_v, W_o), those it keeps; a norm goes with its projection.
        products: matrix products per query-key pair, `QK^T` and `map x V`: 2 where the map is computed, 1 where it is
            read, 0 without attention.
        caches: of keys, values, those it holds for every token.
        reads: what it takes from its source layer: a map, or keys and values; None: it has no source.
        gives: what other layers may take from it.
        symbol, label: how it is drawn; the source's index follows the label.
        mechanism: what it saves by, of `MECHANISMS`; of stock layers `UNMODIFIED`.
        becomes: how a search that gives a full layer this role is described; None: no search proposes it.
        feed_forward: whether the layer's feed-forward stays; without it the whole block is gone, its norms too.
        sizes: fields of a `LayerRow` that such a layer has a value of: kv_heads, window.
        stock: models come with such layers; the others are what a plan makes of them.
    """

    summary: str
    projections: frozenset[str]
    products: int
    caches: frozenset[str]
    reads: str | None
    gives: frozenset[str]
    symbol: str
    label: str
    mechanism: str = UNMODIFIED
    becomes: str | None = None
    feed_forward: bool = True
    sizes: frozenset[str] = frozenset()
    stock: bool = False

    @property
    def attends(self) -> bool:
        """Whether a token of such a layer gets anything from other tokens."""
        return self.products > 0

    @property
    def computes(self) -> bool:
        """Whether anything of the attention is kept."""
        return bool(self.projections)

    @property
    def complete(self) -> bool:
        """Whether such a layer keeps every projection, and with them its family's own forward."""
        return self.projections == {QUERY, KEY, VALUE, OUTPUT}


ROLES: dict[str, Role] = {
    "full": Role(
        summary="computes its own attention map from its own keys",
        projections=frozenset({QUERY, KEY, VALUE, OUTPUT}),
        products=2,
        caches=frozenset({KEYS, VALUES}),
        reads=None,
        gives=frozenset({MAP, KEY_VALUE}),
        symbol="│",
        label="own map",
        stock=True,
    ),
    "reuse": Role(
        summary="uses the attention map of the layer below it with its own values (UniAttn)",
        projections=frozenset({VALUE, OUTPUT}),
        products=1,
        caches=frozenset({VALUES}),
        reads=MAP,
        gives=frozenset(),
        symbol="▒",
        label="map of",
        mechanism=REUSED,
        becomes="use the attention map of the nearest layer below that computes one",
    ),
    "share_kv": Role(
        summary="computes its own map over keys and values of a layer below (CLA)",
        projections=frozenset({QUERY, OUTPUT}),
        products=2,
        caches=frozenset(),
        reads=KEY_VALUE,
        gives=frozenset({MAP}),
        symbol="▒",
        label="K, V of",
        mechanism=SHARED_KV,
        becomes="attend over the keys and values of the nearest layer below that has its own (CLA)",
    ),
    "drop": Role(
        summary="has no attention (LLMDrop)",
        projections=frozenset(),
        products=0,
        caches=frozenset(),
        reads=None,
        gives=frozenset(),
        symbol="·",
        label="dropped",
        mechanism=DROPPED,
        becomes="have no attention (LLMDrop)",
    ),
    "skip": Role(
        summary="is left out, attention and feed-forward: the stream passes it by (ShortGPT)",
        projections=frozenset(),
        products=0,
        caches=frozenset(),
        reads=None,
        gives=frozenset(),
        symbol="×",
        label="block left out",
        mechanism=DROPPED,
        feed_forward=False,
    ),
    "heads": Role(
        summary="computes its own map with fewer heads of keys and values, merged of those it had (MQA, GQA)",
        projections=frozenset({QUERY, KEY, VALUE, OUTPUT}),
        products=2,
        caches=frozenset({KEYS, VALUES}),
        reads=None,
        gives=frozenset({MAP, KEY_VALUE}),
        symbol="▓",
        label="KV heads:",
        mechanism=MERGED_HEADS,
        becomes="have fewer heads of keys and values (GQA)",
        sizes=frozenset({KV_HEADS}),
    ),
    "window": Role(
        summary="attends to the last tokens and the first few (StreamingLLM), and caches no others",
        projections=frozenset({QUERY, KEY, VALUE, OUTPUT}),
        products=2,
        caches=frozenset({KEYS, VALUES}),
        reads=None,
        gives=frozenset(),
        symbol="░",
        label="window",
        mechanism=WINDOWED,
        becomes="attend to the last tokens and the first few",
        sizes=frozenset({WINDOW}),
    ),
    "other": Role(
        summary="has no attention in this model, but a recurrence, a convolution, or a feed-forward alone",
        projections=frozenset(),
        products=0,
        caches=frozenset(),
        reads=None,
        gives=frozenset(),
        symbol="┊",
        label="no attention here",
        stock=True,
    ),
}
FULL, OTHER = "full", "other"

# How readers of a map get it: kept, or computed again from the source's queries and keys; auto decides per forward.
# tiles: a prompt's map is kept in packed tiles by Triton kernels, in the dtype of the queries or in 8 bits.
TILED_MODES = (TILES, TILES_FP8) = ("tiles", "tiles_fp8")
REUSE_MODES = ("auto", "materialise", "replay", *TILED_MODES)
