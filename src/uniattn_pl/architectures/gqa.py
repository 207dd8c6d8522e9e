"""GQA (Ainslie et al., 2023): fewer heads of keys and values, merged of those that the model has."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.architectures.layer_selection import selected_layers
from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.options import option
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.roles import HEAD_MERGES, MEAN, MERGED_HEADS


@register
@dataclass
class GQA(Architecture):
    """Neighbouring heads of keys and values become one (arXiv 2305.13245, by their mean; the paper's MQA and GQA).

    Cost: of W_k, W_v and of the cache such a layer has the share n / Hkv; its queries and its map stay.
    """

    name = "gqa"
    summary = "layers keep fewer heads of keys and values, merged of neighbouring ones (GQA; one: MQA)"
    mechanism = MERGED_HEADS

    kv_heads: int = option(1, "heads of keys and values that a layer keeps; a divisor of what it has", minimum=1)
    layers: list[int] = option([], "0-based indices of the layers; default: all, or the num_layers at the top")
    num_layers: int | None = option(None, "instead of layers: this many, the uppermost", minimum=1)
    merge: str = option(
        "fit", "mean of neighbouring heads; fit: as W_c is fitted, those that lose least", allowed=HEAD_MERGES
    )
    compensation: bool = option(True, "give every such layer a W_c, fitted with its W_o; without, heads are means")

    def compile(self, shape: ModelShape) -> LayerPlan:
        layers = selected_layers(shape.attention_layers, self.layers, self.num_layers, self.name)
        merge = self.merge if self.compensation else MEAN
        plan = LayerPlan.stock(shape)
        return plan.merge_heads(layers, self.kv_heads, compensated=self.compensation, merge=merge)
