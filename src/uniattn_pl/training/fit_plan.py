"""The plan a fit is about: recorded, compiled, or chosen by measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from uniattn_pl.calibration.solvers import DEFAULT_RIDGE
from uniattn_pl.display.progress import ProgressReporter
from uniattn_pl.plan import LayerPlan
from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.resilience.identity import MODEL, digests_of
from uniattn_pl.run_folder import SEARCH_FOLDER
from uniattn_pl.search.model_measurements import ModelMeasurements
from uniattn_pl.training.experiment import Experiment
from uniattn_pl.training.fit_models import FitModels
from uniattn_pl.training.planning import with_configured_compensation
from uniattn_pl.training.teacher_checks import check_source_maps

MEASURED_TOKENS = 2000


def fit_plan(
    experiment: Experiment,
    models: FitModels,
    recorded: Mapping[str, Any] | None,
    *,
    cluster: Cluster,
    console: Console,
) -> LayerPlan:
    """The recorded plan, else what the architecture compiles to, else what it chooses now by measurement on rank 0.

    Raises:
        UserError: as `check_source_maps`, of a plan that was chosen.
    """
    if recorded is not None:
        return LayerPlan.from_dict(recorded)
    if experiment.compiled_plan is not None:
        return experiment.compiled_plan
    architecture = experiment.loaded.architecture
    chosen: dict[str, Any] = {}
    if cluster.is_main:
        with ProgressReporter(f"choosing layers ({architecture.name})", console) as progress:
            measurements = model_measurements(experiment, models.original, progress)
            chosen = architecture.choose(experiment.shape, measurements).to_dict()
    plan = LayerPlan.from_dict(cluster.broadcast(chosen))
    plan = with_configured_compensation(plan, experiment.config.calibration)
    plan.check(experiment.shape)
    check_source_maps(experiment.loaded, plan)
    return plan


def model_measurements(
    experiment: Experiment, original: PreTrainedModel, progress: ProgressReporter
) -> ModelMeasurements:
    """What can be measured on the original with training tokens, kept in the run folder."""
    ridge = experiment.config.calibration.ridge
    return ModelMeasurements(
        original,
        experiment.shape,
        experiment.train_tokens,
        num_tokens=MEASURED_TOKENS,
        ridge=DEFAULT_RIDGE if ridge == "auto" else float(ridge),
        contents=digests_of(experiment.identity).get(MODEL),
        folder=experiment.folder / SEARCH_FOLDER,
        progress=progress.update,
    )
