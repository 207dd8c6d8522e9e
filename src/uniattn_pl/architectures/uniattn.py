"""UniAttn (arXiv 2502.00439): reuse layers take the attention map of their Superblock's source layer."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.architectures.superblocks import superblocks
from uniattn_pl.config.schema import option
from uniattn_pl.plan import COMPENSATION_INPUTS, COMPENSATION_OUTPUTS, LayerPlan, ModelShape


@register
@dataclass
class UniAttn(Architecture):
    """Softmax unification with linear compensation (section 3.3, equations 12 and 14; settings in Table 4).

    Cost: reuse layers compute no Q, K or softmax and cache V only; W_c adds d x d weights each (other sizes where
    it reads or adds elsewhere). Dropped reuse layers (Appendix B, UniAttn + LLMDrop) cache nothing.
    """

    name = "uniattn"
    summary = "Superblocks share one attention map; W_c repairs the error (the paper's method)"

    superblock_size: int = option(4, "layers per Superblock, the source included", minimum=2)
    num_superblocks: int = option(4, "number of Superblocks", minimum=1)
    first_layer: int | None = option(None, "0-based first layer; default: the last block ends at the top", minimum=0)
    compensation: bool = option(True, "give every reuse layer a W_c")
    compensation_input: str = option("attention_input", "what W_c reads (Table 8)", allowed=tuple(COMPENSATION_INPUTS))
    compensation_output: str = option(
        "attention_output", "what W_c's output is added to (Table 8)", allowed=tuple(COMPENSATION_OUTPUTS)
    )
    dropped_layers: list[int] = option([], "0-based reuse layers whose attention is dropped as well (Figure 5)")
    dropped_compensation: bool = option(False, "give the dropped ones a W_c")

    def compile(self, shape: ModelShape) -> LayerPlan:
        plan = LayerPlan.unmodified(shape.num_layers)
        blocks = superblocks(shape, size=self.superblock_size, count=self.num_superblocks, first_layer=self.first_layer)
        for source, readers in blocks:
            plan = plan.reuse_map(readers, source, compensated=self.compensation)
        plan = plan.place_compensation(input=self.compensation_input, output=self.compensation_output)
        return plan.drop_reuse(self.dropped_layers, compensated=self.dropped_compensation)
