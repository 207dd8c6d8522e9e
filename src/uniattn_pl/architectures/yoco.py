"""YOCO (Sun et al., 2024, arXiv 2405.05254): the upper half reads one layer's keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.options import option
from uniattn_pl.plan import LayerPlan, ModelShape, PlanError
from uniattn_pl.plan.roles import SHARED_KV


@register
@dataclass
class YOCO(Architecture):
    """You only cache once: every layer above the one at half attends over its keys and values.

    As the paper's cross-decoder, whose keys and values are made once, of what leaves the lower half; here by the W_k
    and W_v of the layer above it, since the model is trained already. The paper's self-decoder, the lower half, has
    windows or gated retention besides; here it is what it was.

    Cost: readers keep their queries and softmax, and cache nothing.
    """

    name = "yoco"
    summary = "the upper half attends over the keys and values of the layer at half"
    mechanism = SHARED_KV

    source: int | None = option(None, "0-based layer that gives keys and values; default: the one at half", minimum=0)
    compensation: bool = option(False, "give every reader a W_c (the paper has none)")

    def compile(self, shape: ModelShape) -> LayerPlan:
        layers = shape.attention_layers
        half = next((layer for layer in layers if layer >= shape.num_layers // 2), layers[0])
        source = half if self.source is None else self.source
        readers = [layer for layer in layers if layer > source]
        if not readers:
            below = ", ".join(map(str, layers[:-1])) or f"none, as layer {layers[0]} alone attends"
            raise PlanError(f"yoco source is {source}; a layer above it has to read it. Allowed: {below}.")
        return LayerPlan.stock(shape).share_kv(readers, source, compensated=self.compensation)
