"""What the models of a fit say to a few held-out rows: what a person looks at first, beside the losses."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from transformers import PreTrainedModel

from uniattn_pl.data.held_out_prompts import HeldOutPrompt
from uniattn_pl.inference.generation import TextModel
from uniattn_pl.inference.token_choice import Sampling
from uniattn_pl.tracking.fit_result import HeldOutText
from uniattn_pl.training.experiment import Experiment
from uniattn_pl.training.fit_context import FitContext
from uniattn_pl.training.fit_models import FitModels

NEW_TOKENS = 24  # of each text: seconds for all of a small model on a CPU, and a line of a terminal
FILE = "held_out_texts.json"


class HeldOutTexts:
    """Asks models of a fit for the likeliest text behind its first held-out rows, on rank 0 alone.

    Args:
        experiment: whose rows are asked, `evaluation.texts` of them.
        models: of the fit; one whose layers visit the device would bring all of them for each token, and is not asked.
        context: of the fit.
    """

    def __init__(self, experiment: Experiment, models: FitModels, context: FitContext) -> None:
        self._experiment = experiment
        asked = context.cluster.is_main and models.offload is None
        self._count = experiment.config.evaluation.texts if asked else 0

    @cached_property
    def _prompts(self) -> list[HeldOutPrompt]:
        return self._experiment.data.first_prompts(self._count)

    def said(self, name: str, model: PreTrainedModel) -> dict[str, Any]:
        """What a model says, as results of a phase.

        Args:
            name: of the milestone it is.
            model: as it is measured.
        """
        if not self._count:
            return {}
        writer = TextModel(model, self._experiment.tokenizer)
        texts = ["".join(writer.stream(prompt.ids, Sampling(), max_new_tokens=NEW_TOKENS)) for prompt in self._prompts]
        rows = [{"number": p.number, "asked": p.asked, "expected": p.expected} for p in self._prompts]
        return {"texts": {"rows": rows, "said": {name: texts}}}


def log_texts(texts: tuple[HeldOutText, ...], context: FitContext) -> None:
    """Log the texts as a table that MLflow shows."""
    if texts:
        rows = [{"row": text.number, "asked": text.asked, "expected": text.expected, **text.said} for text in texts]
        context.tracking.log_table(rows, FILE)
