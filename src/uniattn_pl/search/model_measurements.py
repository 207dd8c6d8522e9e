"""The measurements behind architectures whose layers are chosen by data, on one model and its training batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from uniattn_pl.architectures.measurement_protocol import LOSS, Proposals
from uniattn_pl.calibration.layers import Batch, Progress
from uniattn_pl.calibration.record import tokens_digest
from uniattn_pl.errors import UserError
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.cost_ratio import COSTS, Cost
from uniattn_pl.plan.saved_form import former_role
from uniattn_pl.search.cache_sharing import FinalStates, cache_distances
from uniattn_pl.search.frontier import write_frontier
from uniattn_pl.search.greedy import ROUNDING, FrontierPoint, GreedySearch, SearchSettings
from uniattn_pl.search.importance import attention_importance
from uniattn_pl.search.linear_bound import linear_bounds
from uniattn_pl.search.map_similarity import adjacent_similarity
from uniattn_pl.search.proposal_search import ProposalSearch
from uniattn_pl.search.stream_changes import block_influence
from uniattn_pl.search.unified_streams import UnifiedStreams

SEARCH_INITIALISER = "joint_least_squares"
FITTED_PER_MEASURED = 3
TOKENS_PER_FEATURE = 16  # of a canonical correlation, which with fewer is of the sample alone


class ModelMeasurements:
    """Answers an architecture's questions (`architectures.measurement_protocol.Measurements`) and keeps the evidence.

    Args:
        model: the original.
        shape: of the model.
        batches: gives training batches that hold about so many tokens, after so many others.
        num_tokens: training tokens for similarity and importance.
        ridge: of the fits inside a search.
        contents: digest of the model's weights, where it is known.
        folder: where a search writes its record and its frontier; a record is of one model, and of the same tokens.
        progress: called with (done, total, what).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        shape: ModelShape,
        batches: Callable[[int, int], Sequence[Batch]],
        *,
        num_tokens: int,
        ridge: float,
        folder: Path,
        contents: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.shape, self.batches = model, shape, batches
        self.num_tokens, self.ridge, self.folder, self.progress = num_tokens, ridge, folder, progress
        self.contents = contents

    def map_similarity(self) -> Sequence[float | None]:
        """By layer, the mean cosine between its head-averaged attention map and the layer below's."""
        return adjacent_similarity(self.model, self.batches(self.num_tokens, 0))

    def attention_importance(self) -> Sequence[float]:
        """By layer, 1 - cosine between the stream before and after its attention."""
        return attention_importance(self.model, self.batches(self.num_tokens, 0))

    def linear_bounds(self) -> Sequence[float]:
        """By layer, NBL's bound on the error of a linear map in place of its attention, on 16 d training tokens."""
        return linear_bounds(self.model, self.batches(TOKENS_PER_FEATURE * self.shape.hidden_size, 0))

    def block_influence(self, span: int) -> Sequence[float]:
        """By first block, 1 - cosine between the stream before and behind `span` blocks."""
        return block_influence(self.model, self.batches(self.num_tokens, 0), span)

    def cache_distances(self) -> Sequence[Sequence[float]]:
        """By two layers, the distance between their average keys and values."""
        return cache_distances(self.model, self.batches(self.num_tokens, 0))

    def final_similarity(self, plan: LayerPlan) -> float:
        """The cosine between the final hidden states under `plan`, every W_c zero, and the original's."""
        return self._final_states.similarity(plan)

    @cached_property
    def _final_states(self) -> FinalStates:
        return FinalStates(self.model, self.batches(self.num_tokens, 0))

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
        """Search, going on from the record of a killed one, and write the frontier into the folder.

        Raises:
            UserError: no row is left to fit on, or the budget cannot be reached.
        """
        settings = SearchSettings(tuple(kinds), Cost(cost, length), budget, compensated, candidates, score)
        points = self.search(settings, tokens, proposals)
        frontier = write_frontier(self.folder, points, settings.cost, score)
        if points[-1].cost > budget + ROUNDING:
            raise UserError(
                f"the search ended at {points[-1].cost:.1%} of the unmodified model ({COSTS[cost]}): no further layer "
                f"can change, and the budget is {budget:.1%}. Raise it, or let layers become something else as well. "
                f"The plans so far are in {frontier}."
            )
        return LayerPlan.from_dict(points[-1].plan)

    def search(self, settings: SearchSettings, tokens: int, proposals: Proposals | None = None) -> list[FrontierPoint]:
        """The unmodified model and every plan of a search that measures on about so many tokens, the chosen one last.

        Args:
            proposals: where plans come from and how they are judged; None: one change after another.

        Raises:
            UserError: no row is left to fit on.
        """
        compensated = settings.compensated
        fitted = self.batches(FITTED_PER_MEASURED * tokens, tokens) if compensated else []
        measured = self.batches(tokens, 0)
        if compensated and not fitted:
            raise UserError(
                f"a search that measures on {tokens} training tokens leaves none to fit W_c on; "
                "lower architecture.search_tokens or give more rows."
            )
        streams = UnifiedStreams(
            self.model, fitted, measured, initialiser=SEARCH_INITIALISER, ridge=self.ridge, score=settings.score
        )
        contents = [self.contents, tokens_digest(fitted), tokens_digest(measured), self.ridge]
        if proposals is None:
            record = _record(self.folder, settings, tokens, contents)
            return GreedySearch(streams, self.shape, settings, record=record, progress=self.progress).run()
        serving = replace(settings, budget=0.0, candidates=0)  # what is measured serves every budget
        record = self.folder / f"proposals-{_digest(serving, tokens, *contents)}.json"
        return ProposalSearch(streams, self.shape, settings, proposals, record=record, progress=self.progress).run()


def _record(folder: Path, settings: SearchSettings, tokens: int, contents: Sequence[Any]) -> Path:
    """The file of this search's evaluations; one that a former version began, of contents unknown, is continued."""
    kinds = tuple(former_role(kind) for kind in settings.kinds)
    former = (folder / f"record-{_digest(one, tokens)}.json" for one in (replace(settings, kinds=kinds), settings))
    own = folder / f"record-{_digest(settings, tokens, *contents)}.json"
    return next((file for file in former if file.exists()), own)


def _digest(settings: SearchSettings, tokens: int, *contents: Any) -> str:
    """Names a search, so that several keep their records in one folder."""
    text = json.dumps([settings.identity(), tokens, FITTED_PER_MEASURED, *contents])
    return hashlib.sha256(text.encode()).hexdigest()[:8]
