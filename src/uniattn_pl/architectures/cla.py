"""Cross-Layer Attention (Brandon et al., 2024): readers use the keys and values of their block's bottom layer."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.architectures.superblocks import superblocks
from uniattn_pl.options import option
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.roles import SHARED_KV


@register
@dataclass
class CLA(Architecture):
    """Cross-layer KV sharing (equation 7; settings in Table 5: CLA-Full 4 blocks of 4, CLA-Half 2).

    Cost: readers keep their queries and softmax, and cache nothing.
    """

    name = "cla"
    summary = "blocks of layers share the keys and values of their bottom layer"
    mechanism = SHARED_KV

    superblock_size: int = option(4, "layers per block, the source included", minimum=2)
    num_superblocks: int = option(4, "number of blocks (4: CLA-Full, 2: CLA-Half on 32 layers)", minimum=1)
    first_layer: int | None = option(None, "0-based first layer; default: the last block ends at the top", minimum=0)
    compensation: bool = option(False, "give every reader a W_c (the paper has none)")

    def compile(self, shape: ModelShape) -> LayerPlan:
        plan = LayerPlan.stock(shape)
        blocks = superblocks(shape, size=self.superblock_size, count=self.num_superblocks, first_layer=self.first_layer)
        for source, readers in blocks:
            plan = plan.share_kv(readers, source, compensated=self.compensation)
        return plan
