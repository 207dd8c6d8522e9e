"""What each layer of a served model is built from, read once off its config: windows, pages, names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.roles import KEY_VALUE
from uniattn_pl.serving.vllm.support import CONVERTED_PREFIX, SERVED_FAMILIES, ServedFamily


@dataclass(frozen=True)
class ServedLayout:
    """A plan on a config as vLLM read it.

    Attributes:
        config: of transformers, a converted model's.
        prefix: of the decoder's modules, `model`.
        workers: that have the heads of every layer between them; numbers of heads below are those of one.
    """

    config: Any
    prefix: str
    workers: int = 1

    @cached_property
    def plan(self) -> LayerPlan:
        return LayerPlan.from_dict(self.config.layer_plan)

    @cached_property
    def family(self) -> ServedFamily:
        return SERVED_FAMILIES[self.config.model_type.removeprefix(CONVERTED_PREFIX)]

    @property
    def heads(self) -> int:
        """Of the H heads those of a worker, which are neighbours."""
        return int(self.config.num_attention_heads) // self.workers

    @property
    def head_size(self) -> int:
        """D."""
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    def kv_heads(self, index: int) -> int:
        """Heads of keys and values of a layer, Hkv or fewer, that a worker has."""
        return (self.plan.rows[index].kv_heads or int(self.config.num_key_value_heads)) // self.workers

    @property
    def most_kv_heads(self) -> int:
        """Hkv of a worker in layers whose heads are not merged."""
        return int(self.config.num_key_value_heads) // self.workers

    def heads_from(self, index: int, worker: int) -> list[int]:
        """Of which of the worker's heads each of them uses the map in a layer; empty: each its own."""
        first, everywhere = worker * self.heads, self.plan.rows[index].heads_from or ()
        return [head - first for head in everywhere[first : first + self.heads]]

    def name(self, index: int, part: str) -> str:
        """The name by which vLLM knows what of a layer has a cache: `attn`, or `keys` and `values` apart."""
        return f"{self.prefix}.layers.{index}.self_attn.{part}"

    def key_layer(self, index: int) -> int:
        """The layer whose keys a layer attends over: its own, or those that it shares."""
        row = self.plan.rows[index]
        return row.source if row.traits.reads == KEY_VALUE and row.source is not None else index

    def window(self, index: int) -> int | None:
        """The last tokens that a layer's own attention sees, the present one among them; None: every token."""
        own = self.plan.rows[index].window
        if own is not None:
            return own
        types = getattr(self.config, "layer_types", None)
        slides = types[index] == "sliding_attention" if types else self.config.model_type.endswith("_mistral")
        return getattr(self.config, "sliding_window", None) if slides else None

    @cached_property
    def separate(self) -> frozenset[int]:
        """Layers whose keys and values are in pages apart: those whose keys some reused map is made of."""
        sources = (self.plan.rows[index].source for index in self.plan.reusing)
        return frozenset(self.key_layer(source) for source in sources if source is not None)

    @cached_property
    def keeps_all(self) -> bool:
        """Whether windowed layers, too, keep every token.

        vLLM gives windows of one length a block table of their own, but a reuse layer and its source have one together.
        """
        windows = {self.window(row.index) for row in self.plan.rows if row.caches_keys}
        return bool(self.plan.reusing) and len(windows) > 1
