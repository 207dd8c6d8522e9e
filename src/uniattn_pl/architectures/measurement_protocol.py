"""What an architecture may ask of the model and the data when its layers are chosen by measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from uniattn_pl.plan import LayerPlan


class Measurements(Protocol):
    """Answers about one model on calibration data; each is computed when first asked for and kept."""

    def map_similarity(self) -> Sequence[float | None]:
        """By layer, the cosine between its head-averaged attention map and that of the layer below (None: bottom)."""

    def attention_importance(self) -> Sequence[float]:
        """By layer, 1 - cosine between the residual stream before and after its attention (LLMDrop)."""

    def linear_bounds(self) -> Sequence[float]:
        """By layer, NBL's bound on the error of a linear map in place of its attention, by canonical correlations."""

    def block_influence(self, span: int) -> Sequence[float]:
        """By first block, 1 - cosine between the stream before and behind `span` blocks (ShortGPT, ReplaceMe)."""

    def cache_distances(self) -> Sequence[Sequence[float]]:
        """By two layers, the distance between their average keys and values; -inf where none can be (KVSharer)."""

    def final_similarity(self, plan: LayerPlan) -> float:
        """The cosine between the final hidden states under a plan, every W_c zero, and the original's."""

    def greedy(
        self,
        *,
        kinds: Sequence[str],
        cost: str,
        length: int,
        budget: float,
        compensated: bool,
        candidates: int = 0,
        tokens: int = 2000,
    ) -> LayerPlan:
        """The plan a greedy search ends with (`search.greedy.Settings` has the meaning of each argument)."""
