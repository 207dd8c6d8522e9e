"""KVSharer (Yang et al., 2024, arXiv 2410.18517): layers share the keys and values that are least alike."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from uniattn_pl.architectures.measurement_protocol import Measurements
from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.options import option
from uniattn_pl.plan import LayerPlan, ModelShape, PlanError
from uniattn_pl.plan.roles import SHARED_KV


@register
@dataclass
class KVSharer(Architecture):
    """Pairs of layers by the distance between their average caches, the largest first; the upper one reads the lower's.

    As the paper's Algorithm 1: a pair stays if the final hidden states stay like the original's (cosine above
    `threshold`), until `num_shared` layers share. A layer that others read may come to share itself, and they read what
    it reads then. Unlike the paper a sharing layer may have a W_c, and pairs that the model's windows or heads rule out
    are passed over.

    Cost: readers keep their queries and softmax, and cache nothing; one forward per pair that is tried.
    """

    name = "kvsharer"
    summary = "layers share the keys and values that are least alike, as long as the final states stay alike"
    mechanism = SHARED_KV

    num_shared: int = option(4, "layers that read another's keys and values", minimum=1)
    threshold: float = option(0.5, "least cosine of the final hidden states with the original's", minimum=-1.0)
    compensation: bool = option(False, "give every reader a W_c (the paper has none)")

    @property
    def measured(self) -> bool:
        return True

    def compile(self, shape: ModelShape) -> LayerPlan:
        raise PlanError("kvsharer chooses the layers by measurement, when a fit starts.")

    def check(self, shape: ModelShape) -> None:
        if len(shape.attention_layers) < shape.num_layers:
            raise PlanError("kvsharer compares the caches of all layers; some layers of this model have none.")
        most = len(shape.attention_layers) - 1
        if self.num_shared > most:
            raise PlanError(f"num_shared is {self.num_shared}; at most {most} layers can share.")

    def choose(self, shape: ModelShape, measurements: Measurements) -> LayerPlan:
        self.check(shape)
        distances = measurements.cache_distances()
        pairs = sorted(combinations(shape.attention_layers, 2), key=lambda pair: -distances[pair[0]][pair[1]])
        plan = LayerPlan.stock(shape)
        for source, reader in pairs:
            tried = self._sharing(plan, source, reader, shape)
            if tried is not None and measurements.final_similarity(tried) > self.threshold:
                plan = tried
            if len(plan.operated) == self.num_shared:
                return plan
        raise PlanError(
            f"of {self.num_shared} layers only {len(plan.operated)} can share and leave the final hidden states a "
            f"cosine above {self.threshold:g} with the original's; ask for fewer (num_shared), or lower the threshold."
        )

    def _sharing(self, plan: LayerPlan, source: int, reader: int, shape: ModelShape) -> LayerPlan | None:
        """The plan with one layer more that shares, or None where it shares already or cannot."""
        if plan.rows[reader].operated:
            return None
        readers = [reader, *(row.index for row in plan.readers(reader))]
        try:
            shared = plan.share_kv(readers, plan.root(source), compensated=self.compensation)
            shared.check(shape)
        except PlanError:
            return None
        return shared
