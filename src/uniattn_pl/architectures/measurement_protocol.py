"""What an architecture may ask of the model and the data when its layers are chosen by measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from uniattn_pl.plan import LayerPlan

KL, LOSS = "kl", "loss"
SCORES = {
    KL: "KL of the next token from the original's, all tokens (nats per token)",
    LOSS: "loss on the labels (nats per token)",
}
GREEDY, MIP, BOTH = "greedy", "mip", "both"
PROPOSALS = {
    GREEDY: "one change after another",
    MIP: "a mixed integer program over the scores of single changes",
    BOTH: "both, the better is taken",
}


@dataclass(frozen=True)
class Proposals:
    """Where a search's plans come from, and how they are judged.

    Attributes:
        by: of `PROPOSALS`.
        pool: plans of the program that are judged; 0: its optimum is taken as it is (Puzzle, arXiv 2411.19146).
        swaps: how often at most the best plan's costliest change is undone and greedy goes on from there.
        distilled: how many of the best are judged once more, after a short distillation; 0: none.
        distill_steps: of that.
    """

    by: str = GREEDY
    pool: int = 8
    swaps: int = 0
    distilled: int = 0
    distill_steps: int = 30


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
        score: str = LOSS,
        proposals: Proposals | None = None,
    ) -> LayerPlan:
        """The plan a search ends with (`search.search_settings.SearchSettings` has the meaning of each argument).

        Args:
            proposals: None: greedy.
        """
