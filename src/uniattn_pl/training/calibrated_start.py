"""The calibration of a fit: W_c is fitted, its ranks are chosen, and what came of it is told and logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from uniattn_pl.calibration.rank_choice import RANK_KEEPS
from uniattn_pl.calibration.refinement import Refinement
from uniattn_pl.display.progress import ProgressReporter
from uniattn_pl.modeling.conversion.convert import plan_of
from uniattn_pl.plan.compensation_cost import CompensationCost
from uniattn_pl.plan.drawing import draw
from uniattn_pl.resilience.identity import MODEL
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.final_table import WARNING, initialisation_lines
from uniattn_pl.tracking.fit_result import FitResult
from uniattn_pl.training.callbacks.compensation_init import CompensationInit
from uniattn_pl.training.experiment import Experiment
from uniattn_pl.training.fit_context import FitContext

CALIBRATION_FOLDER = "calibration"
PLAN_FILE = "plan.txt"


def calibrate_start(
    experiment: Experiment, original: PreTrainedModel, converted: PreTrainedModel, context: FitContext
) -> dict[str, Any]:
    """Set the compensations of `converted` in place; returns the report of what is repaired."""
    options, data, ranks = experiment.config.calibration, experiment.data, context.cluster.world_size
    # a batch for every rank at least
    batch_size = max(1, min(options.batch_size, options.num_samples // ranks))
    held_out = max(options.held_out_samples, ranks)
    on_device = options.device_memory_limit_gib
    held_out_batch_size = max(1, min(batch_size, held_out // ranks))
    with ProgressReporter("calibration", context.console) as progress:
        callback = CompensationInit(
            original,
            data.train_batches(options.num_samples, batch_size, first=options.skip_samples),
            data.validation_batches(held_out, held_out_batch_size),
            initialiser=options.initialiser,
            ridge=options.ridge,
            head_alignment=options.head_alignment,
            rank_keeps=RANK_KEEPS if options.rank_keeps is None else options.rank_keeps,
            refinement=Refinement.configured(options.refine),
            record=experiment.folder / CALIBRATION_FOLDER,
            contents=context.record.manifest.identity.get(MODEL),
            memory_limit_bytes=int(options.memory_limit_gib * 2**30),
            device_limit_bytes=None if on_device is None else int(on_device * 2**30),
            progress=progress.update,
        )
        report = callback.initialise(converted)
    context.console.print("\n".join(report.lines()), highlight=False, soft_wrap=True)
    errors = {"calibration/error_before": report.error_before, "calibration/error_after": report.error_after}
    context.tracking.log_metrics(errors, 0)
    context.tracking.log_text(json.dumps(report.to_dict(), indent=2), "calibration.json")
    context.tracking.log_text("\n".join(report.lines()) + "\n", "calibration.txt")
    return report.to_dict()


def log_chosen_ranks(converted: PreTrainedModel, context: FitContext) -> dict[str, Any]:
    """Log the plan with the ranks that calibration has chosen in place of the one without; returns its saved form."""
    plan = plan_of(converted)
    context.tracking.log_text(draw(plan) + "\n", PLAN_FILE)
    context.tracking.set_tag(tags.PLAN, tags.plan_digest(plan))
    return plan.to_dict()


def log_parameters(converted: PreTrainedModel, experiment: Experiment, context: FitContext) -> None:
    """Log and tell what the model has to hold, and what W_c is of it, beside what the removed projections saved."""
    cost = CompensationCost.of(plan_of(converted), experiment.shape)
    values = {"parameters": sum(parameter.numel() for parameter in converted.parameters())}
    if cost.parameters:
        values |= {"compensation_parameters": cost.parameters, "saved_parameters": cost.saved_parameters}
        share = f"{cost.parameters:,} parameters, beside {cost.saved_parameters:,} of the removed projections"
        context.console.print(f"W_c: {share}", highlight=False)
    context.tracking.log_metrics({f"cost/{name}": float(value) for name, value in values.items()}, 0)


def warn_of_harm(measured: dict[str, Any], context: FitContext) -> None:
    """Say at once where the initialisation made the converted model worse: stages of hours begin there."""
    phases = {"prepare": context.record.result("prepare"), "initialise": {"milestones": measured}}
    result = FitResult.from_results(phases, run_folder=Path(), model_folder=Path())
    for line in initialisation_lines(result):
        if line.startswith(WARNING):
            context.console.print(line, highlight=False, markup=False, soft_wrap=True)
