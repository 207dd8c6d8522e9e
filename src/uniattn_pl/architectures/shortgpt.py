"""ShortGPT (Men et al., 2024, arXiv 2403.03853) and ReplaceMe (Shopkhoev et al., 2025, arXiv 2505.02819)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from uniattn_pl.architectures.measurement_protocol import Measurements
from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.options import option
from uniattn_pl.plan import LayerPlan, ModelShape, PlanError
from uniattn_pl.plan.roles import DROPPED

INFLUENCE, RUN, TOP = "influence", "run", "top"


@register
@dataclass
class ShortGPT(Architecture):
    """Leave whole blocks out, attention and feed-forward.

    `ranking: influence` is ShortGPT: the blocks of least Block Influence, 1 - cos(x_i, x_{i+1}), in one measurement.
    `ranking: run` is the choice of ReplaceMe: blocks i to i + n - 1 of least 1 - cos(x_i, x_{i+n}). `replace` is its
    linear map, T = argmin sum over tokens of |x_i + x_i T - x_{i+n}|^2: a W_c of the first block of each run, fitted to
    the original's stream behind the run. ReplaceMe's map reads only what the feed-forward before it gave, M_{i-1} T + y
    with y the rest of the stream, so that it merges into that W_down; ours reads the whole stream and stays a matrix of
    d^2 weights. Its regulariser is the ridge of the calibration; its cosine loss and several runs at once are not built
    (`layers` may name several runs).

    Cost: a block that is left out computes and caches nothing, and its weights are gone; with a W_c it is one product.
    """

    name = "shortgpt"
    summary = "leaves whole blocks out, or replaces a run of them by one linear map"
    mechanism = DROPPED

    layers: list[int] = option([], "0-based indices of the blocks that are left out")
    num_dropped: int | None = option(None, "instead of layers: leave out this many", minimum=1)
    ranking: str = option(
        INFLUENCE,
        "which num_dropped: those that change the stream least, the run that does together, or the top but the last",
        allowed=(INFLUENCE, RUN, TOP),
    )
    compensation: bool = option(False, "give every block that is left out a W_c, which reads the stream")
    replace: bool = option(False, "instead: give each run one W_c, which stands for all its blocks (ReplaceMe)")

    @property
    def measured(self) -> bool:
        return self.num_dropped is not None and self.ranking != TOP

    def check(self, shape: ModelShape) -> None:
        number = self.num_dropped or 0
        if self.num_dropped is not None and self.layers:
            raise PlanError("shortgpt takes layers or num_dropped, not both.")
        if self.compensation and self.replace:
            raise PlanError("shortgpt takes compensation (a W_c per block) or replace (one per run), not both.")
        if number >= shape.num_layers:
            raise PlanError(f"num_dropped is {number}; of {shape.num_layers} blocks one must stay.")
        super().check(shape)

    def choose(self, shape: ModelShape, measurements: Measurements) -> LayerPlan:
        self.check(shape)
        number = self.num_dropped or 0
        if self.ranking == RUN:
            changes = measurements.block_influence(number)
            first = min(range(len(changes)), key=lambda block: changes[block])
            return self._without(range(first, first + number), shape)
        changes = measurements.block_influence(1)
        ranked = sorted(shape.attention_layers, key=lambda block: changes[block])
        return self._without(sorted(ranked[:number]), shape)

    def compile(self, shape: ModelShape) -> LayerPlan:
        if self.measured:
            raise PlanError(f"ranking {self.ranking} chooses the blocks by measurement, when a fit starts.")
        repeated = sorted({i for i in self.layers if self.layers.count(i) > 1})
        if repeated:
            raise PlanError(f"shortgpt layers lists {', '.join(map(str, repeated))} more than once.")
        if self.num_dropped is not None:
            last = shape.num_layers - 1
            return self._without(range(last - self.num_dropped, last), shape)
        if not self.layers:
            raise PlanError(
                f"shortgpt needs num_dropped, or layers: a list of indices from 0 to {shape.num_layers - 1}."
            )
        return self._without(sorted(self.layers), shape)

    def _without(self, blocks: range | list[int], shape: ModelShape) -> LayerPlan:
        plan = LayerPlan.stock(shape).skip(blocks, compensated=self.compensation)
        if self.replace:
            # Blocks in a row differ from their place among the blocks by the same number.
            for _, run in groupby(enumerate(blocks), key=lambda placed: placed[1] - placed[0]):
                members = [block for _, block in run]
                plan = plan.replace_run(members[0], members[-1])
        return plan
