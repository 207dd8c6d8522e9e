"""What stage 2 needs to learn preferences: pairs, and what the reference says of them.

The reference is not beside the model that learns: it reads all pairs before that one is built, and is then gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from uniattn_pl.config.sections.dpo_section import ORIGINAL, START
from uniattn_pl.data.loader import ResumableLoader
from uniattn_pl.data.preference_data import PreferenceDataModule
from uniattn_pl.data.preference_pairs import PairedRows
from uniattn_pl.evaluation.held_out_preferences import HeldOutPreferences, held_out_preferences
from uniattn_pl.files import cache_folder
from uniattn_pl.plan import LayerPlan
from uniattn_pl.resilience.identity import MODEL, plain_digest
from uniattn_pl.training.experiment import Experiment
from uniattn_pl.training.fit_context import FitContext
from uniattn_pl.training.fit_models import FitModels
from uniattn_pl.training.objectives.preference_objective import PreferenceObjective
from uniattn_pl.training.objectives.reference_logps import ReferenceLogps
from uniattn_pl.training.stage_model import AUTOCAST_DTYPES, build_model, is_quantised

REFERENCES = "references"
WORDS = {START: "the model that stage 2 begins with", ORIGINAL: "the original model"}


@dataclass(frozen=True)
class StagePreferences:
    """A stage that learns preferences.

    Attributes:
        objective: what it minimises.
        loader: of its pairs.
        score: judges a model by held-out pairs; every rank calls it.
    """

    objective: PreferenceObjective
    loader: ResumableLoader
    score: Callable[[nn.Module], HeldOutPreferences]


def stage_preferences(
    source: Path, source_phase: str, experiment: Experiment, plan: LayerPlan, models: FitModels, context: FitContext
) -> StagePreferences | None:
    """Have the reference read all pairs, or find what it has said of them; None where no preferences are learned.

    Pairs are read in the precision of what they are compared with: of training, or of how held-out rows are measured.

    Args:
        source: the model folder that stage 2 starts from.
        source_phase: the phase that wrote it.
    """
    training, data, cluster = experiment.config.training, experiment.data, context.cluster
    if not isinstance(data, PreferenceDataModule):
        return None
    about = cluster.broadcast(_identity(experiment, context, source_phase) if cluster.is_main else {})
    bring = partial(_brought, source, experiment, plan, models)

    def read(pairs: PairedRows, precision: torch.dtype | None) -> tuple[Tensor, int]:
        key = plain_digest({**about, "pairs": pairs.contents, "precision": str(precision)}).hex()
        folder = cache_folder() / REFERENCES / key
        reference = ReferenceLogps(folder, partial(bring, precision), training.micro_batch_size)
        return reference.of(pairs, data.pair_collator, cluster)

    reference, trained = read(data.train_pairs, AUTOCAST_DTYPES.get(experiment.precision))
    held_out_reference, held_out = read(data.held_out_pairs, None)
    who = WORDS[training.dpo.reference]
    line = f"{data.pair_counts}; {trained + held_out:,} of them read now by the reference, {who}."
    context.console.print(line, highlight=False, soft_wrap=True)
    measured = experiment.config.evaluation
    score = partial(
        held_out_preferences,
        batches=data.held_out_pair_batches(
            measured.num_samples, measured.batch_size, rank=cluster.rank, world_size=cluster.world_size
        ),
        reference=held_out_reference,
        options=training.dpo,
        device=cluster.device,
        sums=cluster.sums,
    )
    return StagePreferences(PreferenceObjective(training.dpo, reference), data.pair_dataloader(), score)


def _identity(experiment: Experiment, context: FitContext, source_phase: str) -> dict[str, object]:
    """What log-probabilities depend on besides the pairs."""
    config = experiment.config
    begins = config.training.dpo.reference == START
    model = context.record.result(source_phase)["files"] if begins else experiment.identity[MODEL].digest
    return {
        "model": model,
        "computed": [config.model.dtype, config.training.precision],
        "quantized": begins and is_quantised(experiment),
    }


@contextmanager
def _brought(
    source: Path, experiment: Experiment, plan: LayerPlan, models: FitModels, precision: torch.dtype | None
) -> Iterator[nn.Module]:
    """The reference on this rank's device, for as long as it reads."""
    begins = experiment.config.training.dpo.reference == START
    with ExitStack() as stack:
        if precision is not None:
            stack.enter_context(torch.autocast(models.device.type, precision))
        if begins and is_quantised(experiment):
            adapted = cast(Any, build_model(2, experiment, plan, models, source))
            stack.enter_context(adapted.disable_adapter())
            yield adapted.to(models.device).eval()
        else:
            yield models.alone(source if begins else None).eval()
