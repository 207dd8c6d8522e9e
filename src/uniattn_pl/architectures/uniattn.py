"""UniAttn (arXiv 2502.00439): reuse layers take the attention map of their Superblock's source layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uniattn_pl.architectures.measurement_protocol import LOSS, SCORES, Measurements
from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.architectures.superblocks import SUPERBLOCKS, superblocks
from uniattn_pl.options import option
from uniattn_pl.plan import COMPENSATION_INPUTS, COMPENSATION_OUTPUTS, LayerPlan, ModelShape, PlanError
from uniattn_pl.plan.roles import REUSED

SELECTIONS = {
    "top": "top, Superblocks (the paper's grouping)",
    "similarity": "similarity, the layers whose maps are most like the map below (Table 9)",
    "greedy": "greedy, one by one those whose reuse costs least `score`, measured on training tokens",
    "given": "given, those in `layers`",
}


@register
@dataclass
class UniAttn(Architecture):
    """Softmax unification with linear compensation (section 3.3, equations 12 and 14; settings in Table 4).

    Cost: reuse layers compute no Q, K or softmax and cache V only; W_c adds d x d weights each (other sizes where
    it reads or adds elsewhere). Dropped reuse layers (Appendix B, UniAttn + LLMDrop) cache nothing.
    """

    name = "uniattn"
    summary = "Superblocks with one attention map each; W_c repairs the error (the paper's method)"
    mechanism = REUSED

    superblock_size: int = option(4, "layers per Superblock, the source included", minimum=2)
    num_superblocks: int | None = option(
        None, f"number of Superblocks; default: {SUPERBLOCKS}, fewer where the model has fewer layers", minimum=1
    )
    first_layer: int | None = option(None, "0-based first layer; default: the last block ends at the top", minimum=0)
    selection: str = option("top", "who reuses: " + "; ".join(SELECTIONS.values()), allowed=tuple(SELECTIONS))
    layers: list[int] = option([], "0-based reuse layers of selection=given; each reuses the map below it")
    num_reused: int | None = option(
        None, "reuse layers of selection=similarity and greedy; default: as many as the Superblocks have", minimum=1
    )
    search_tokens: int = option(2000, "training tokens that selection=greedy measures on", minimum=16)
    score: str = option(LOSS, f"what selection=greedy judges by: {'; '.join(SCORES.values())}", allowed=tuple(SCORES))
    candidates: int = option(
        16, "layers that selection=greedy measures per round, the most promising ones; 0: all", minimum=0
    )
    compensation: bool = option(True, "give every reuse layer a W_c")
    compensation_input: str = option("attention_input", "what W_c reads (Table 8)", allowed=tuple(COMPENSATION_INPUTS))
    compensation_output: str = option(
        "attention_output", "what W_c's output is added to (Table 8)", allowed=tuple(COMPENSATION_OUTPUTS)
    )
    cross_attention: bool = option(
        False, "reuse layers of a decoder beside an encoder (T5, BART) use their source's cross-attention map, too"
    )
    dropped_layers: list[int] = option([], "0-based reuse layers whose attention is dropped as well (Figure 5)")
    dropped_compensation: bool = option(False, "give the dropped ones a W_c")

    @property
    def measured(self) -> bool:
        return self.selection in ("similarity", "greedy")

    def compile(self, shape: ModelShape) -> LayerPlan:
        if self.measured:
            raise PlanError(f"selection={self.selection} chooses the layers by measurement, when a fit starts.")
        if self.selection == "given":
            return self._finish(self._chained(shape, self.layers))
        plan = LayerPlan.stock(shape)
        blocks = superblocks(
            shape, size=self.superblock_size, count=self._superblocks(shape), first_layer=self.first_layer
        )
        for source, readers in blocks:
            plan = plan.reuse(readers, source, compensated=self.compensation)
        return self._finish(plan)

    def _superblocks(self, shape: ModelShape) -> int:
        return self.num_superblocks or max(1, min(SUPERBLOCKS, len(shape.attention_layers) // self.superblock_size))

    def _count(self, shape: ModelShape) -> int:
        return self.num_reused or (self.superblock_size - 1) * self._superblocks(shape)

    def check(self, shape: ModelShape) -> None:
        available, count = len(shape.attention_layers), self._count(shape)
        if self.measured and count >= available:
            raise PlanError(f"num_reused is {count}; at most {available - 1} of {available} layers fit.")
        super().check(shape)

    def choose(self, shape: ModelShape, measurements: Measurements) -> LayerPlan:
        self.check(shape)
        count = self._count(shape)
        if self.selection == "similarity":
            similarity = measurements.map_similarity()
            ranked = sorted(shape.attention_layers[1:], key=lambda layer: similarity[layer] or 0.0, reverse=True)
            return self._finish(self._chained(shape, self._first_that_fit(ranked, shape)))
        # Each reuse layer gives up its K cache, half of what it kept.
        budget = 1 - count / (2 * len(shape.attention_layers))
        plan = measurements.greedy(
            kinds=("reuse",),
            cost="key_caches",
            length=1,
            budget=budget,
            compensated=False,  # on few tokens a choice among fitted layers follows the fits' noise
            candidates=self.candidates,
            tokens=self.search_tokens,
            score=self.score,
        )
        return self._finish(self._chained(shape, plan.operated))

    def _first_that_fit(self, ranked: Sequence[int], shape: ModelShape) -> list[int]:
        """As many of `ranked` as are to reuse, the first ones, but for those that would see further than their source.

        Raises:
            PlanError: there are not so many.
        """
        chosen: list[int] = []
        count = self._count(shape)
        while len(chosen) < count:  # a layer may fit once the one below it uses a source that sees further
            further = next((layer for layer in ranked if self._can_reuse(layer, chosen, shape)), None)
            if further is None:
                most = len(chosen)
                raise PlanError(f"num_reused is {count}; the model's windows let {most} layers reuse others.")
            chosen.append(further)
        return chosen

    def _can_reuse(self, layer: int, chosen: Sequence[int], shape: ModelShape) -> bool:
        """Whether `layer` can reuse the map below it when the chosen layers do."""
        if layer in chosen:
            return False
        try:
            self._chained(shape, [*chosen, layer]).check(shape)
        except PlanError:
            return False
        return True

    def _chained(self, shape: ModelShape, layers: Sequence[int]) -> LayerPlan:
        """Each of `layers` uses the map of the layer below it, or of the one that layer uses."""
        attending = shape.attention_layers
        if not layers or not set(layers) <= set(attending[1:]):
            allowed = f"from 1 to {shape.num_layers - 1}"
            if len(attending) < shape.num_layers:
                allowed = f"of {', '.join(map(str, attending[1:]))}"
            raise PlanError(f"layers must be a list of indices {allowed}, got {list(layers)}.")
        plan = LayerPlan.stock(shape)
        for layer in sorted(set(layers)):
            below = attending[attending.index(layer) - 1]
            plan = plan.reuse([layer], below, compensated=self.compensation)
        return plan

    def _finish(self, plan: LayerPlan) -> LayerPlan:
        """Place the compensations and drop what is to be dropped."""
        plan = plan.place_compensation(input=self.compensation_input, output=self.compensation_output)
        plan = plan.reuse_cross_maps() if self.cross_attention else plan
        return plan.drop_reuse(self.dropped_layers, compensated=self.dropped_compensation)
