"""What a plan costs, relative to the unmodified model: the quantities that a search can save."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.plan import costs
from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.shape import ModelShape

COSTS = {
    "key_caches": "caches of keys and of values, counted by layer",
    "kv_bytes": "bytes of the KV cache",
    "prefill_flops": "FLOPs of the prefill",
    "decode_bytes": "bytes read per generated token: weights and cache, in 16 bits",
}


@dataclass(frozen=True)
class Cost:
    """One of `COSTS` at `length` tokens."""

    kind: str = "kv_bytes"
    length: int = 512

    def ratio(self, plan: LayerPlan, shape: ModelShape) -> float:
        """The plan's cost relative to the unmodified model's."""
        return self._absolute(plan, shape) / self._absolute(LayerPlan.stock(shape), shape)

    def _absolute(self, plan: LayerPlan, shape: ModelShape) -> int:
        if self.kind == "key_caches":
            return sum(len(row.traits.caches) for row in plan.rows)
        if self.kind == "prefill_flops":
            return costs.prefill_flops(plan, shape, batch_size=1, length=self.length)
        if self.kind == "decode_bytes":
            return costs.decode_bytes(plan, shape, batch_size=1, length=self.length, bytes_per_element=2)
        return costs.kv_cache_bytes(plan, shape, batch_size=1, length=self.length, bytes_per_element=2)
