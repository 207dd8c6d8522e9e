"""The whole fit, from the original model to the final table, read from top to bottom.

Five phases: prepare, initialise, stage 1, stage 2, finish. All ranks run them together; rank 0 writes. Each phase
returns its results, which are committed in one atomic step: killed before the commit it runs again (a stage from its
last checkpoint), killed after it never does. What makes that hold (manifest, checkpoints, signals, ranks) is
`resilience/`.

Where to look next: one stage is `stage.py`; the training step and the optimizer are `lightning_module.py`, the loss
`losses/response_loss.py`, the learning rate `schedule.py`, what trains in which stage `callbacks/stage_freezing.py`,
how W_c starts `calibration/`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.sections.data_section import SELF
from uniattn_pl.data.told_rows import tell_rows
from uniattn_pl.display.quiet_libraries import quiet_libraries
from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import in_words
from uniattn_pl.files import CACHE_VARIABLE, atomic_file
from uniattn_pl.modeling.loading.dtypes import computes_in_bfloat16
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.drawing import draw
from uniattn_pl.redaction import redact
from uniattn_pl.resilience import ranks
from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.resilience.failures import failures_explained
from uniattn_pl.resilience.identity import MODEL, TRAINING_ROWS
from uniattn_pl.resilience.model_folders import file_sums, save_model
from uniattn_pl.resilience.preemption import Preemption
from uniattn_pl.resilience.run_record import RunRecord
from uniattn_pl.run_folder import SEARCH_FOLDER
from uniattn_pl.search.frontier import FRONTIER
from uniattn_pl.tracking import fit_plots, tags
from uniattn_pl.tracking.final_table import as_text, final_table
from uniattn_pl.tracking.fit_result import CONVERTED, INITIAL, ORIGINAL, FitResult
from uniattn_pl.training.cache_cost import measure_cache
from uniattn_pl.training.calibrated_start import (
    CALIBRATION_FOLDER,
    PLAN_FILE,
    calibrate_start,
    log_chosen_ranks,
    log_parameters,
    warn_of_harm,
)
from uniattn_pl.training.experiment import Experiment
from uniattn_pl.training.fit_context import FitContext
from uniattn_pl.training.fit_models import FitModels
from uniattn_pl.training.fit_plan import fit_plan
from uniattn_pl.training.fit_tracking import deliver_rest, fit_tracking
from uniattn_pl.training.held_out_texts import HeldOutTexts, log_texts
from uniattn_pl.training.milestones import Milestones
from uniattn_pl.training.preflight import check_fit
from uniattn_pl.training.present_identity import PresentIdentities
from uniattn_pl.training.saved_model import InMemory, reread
from uniattn_pl.training.stage import FINAL, Stage, clear_checkpoints, is_damaged, run_stage

TABLE_FILE = "final_table.txt"


def fit(loaded: LoadedConfig, *, allow_changes: bool = False) -> FitResult:
    """Run an experiment, or the rest of a killed one; a finished one only shows its table again.

    Args:
        loaded: the checked experiment; its trainer.default_root_dir is the run folder.
        allow_changes: go on with another config, other rows, another model or tokenizer than the folder was started
            with, for what is still to be done.

    Raises:
        UserError: the input does not work out, the folder belongs to another experiment or is in use, or what the
            experiment rests on has changed.
        TrainingDivergedError: the loss or a gradient became NaN or infinite, or exploded.
        RunFailure: anything else outside of this program that a fit cannot go on without, such as room on the disk.
    """
    _prepare_process(deterministic=loaded.config.trainer.deterministic)
    cluster, preemption = Cluster(loaded.config), Preemption()
    starts_others = cluster.starts_others
    with preemption.watch(), failures_explained(cluster, loaded.config.trainer.default_root_dir):
        if not starts_others:
            cluster.launch()
        console, experiment = Console(quiet=not cluster.is_main), None
        check = partial(check_fit, loaded, resumes=False, rows=False)
        with RunRecord.opened(loaded, cluster, allow_changes=allow_changes, check=check) as record:
            record.agree()
            if record.moved is not None:
                console.print(record.moved, highlight=False, markup=False, soft_wrap=True)
            if record.finished:
                _look_at_finished(loaded, record, console, allow_changes=allow_changes)
            if not record.finished:
                console.print(f"model: {in_words(loaded.config.model.source)}", highlight=False, soft_wrap=True)
            if starts_others and not record.finished:
                # what is wrong with the input shows before other processes are started
                experiment = Experiment(loaded, cluster)
                cluster.launch()
                record.agree()
            if record.finished:
                console.print(f"the fit in {record.folder} is finished; nothing was run.", highlight=False)
                if cluster.is_main:
                    deliver_rest(loaded, record, console)
            else:
                experiment = experiment or Experiment(loaded, cluster)
                _check_identity(experiment, record, console, allow_changes=allow_changes)
                tell_rows(experiment.data.report, console)
                _run_phases(experiment, record, preemption, console)
            result = record.manifest.result(record.folder, redact(loaded.config.tracking.uri))
            # commands must be copied as they are, so lines are not broken
            console.print(final_table(result), soft_wrap=True)
    return result


def _check_identity(experiment: Experiment, record: RunRecord, console: Console, *, allow_changes: bool) -> None:
    """Check that the run rests on what it was begun with, and all ranks on the same.

    Raises:
        UserError: as `RunRecord.rests_on`, or ranks that share no cache folder have sampled other texts.
    """
    if SELF in experiment.config.data.training_sources:
        sampled = ranks.gather(experiment.data.contents[TRAINING_ROWS].digest)
        if len(set(sampled)) > 1:
            raise UserError(
                "the machines of this fit have not sampled the same text of the model, as other hardware rounds "
                f"otherwise; let ${CACHE_VARIABLE} be one folder for all of them."
            )
    identity = experiment.identity if record.cluster.is_main else {}
    for line in record.rests_on(identity, allow_changes=allow_changes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _look_at_finished(loaded: LoadedConfig, record: RunRecord, console: Console, *, allow_changes: bool) -> None:
    """See whether a finished fit rests on what there is now, and what it has left is there; else it is not finished.

    Raises:
        UserError: as `RunRecord.rests_on`.
    """
    identity, unseen = PresentIdentities().of(loaded) if record.cluster.is_main else ({}, [])
    lines = [*record.rests_on(identity, allow_changes=allow_changes), *unseen]
    lost = record.reopen_if_lost()
    record.agree()
    for line in lines if lost is None else [*lines, lost]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _run_phases(experiment: Experiment, record: RunRecord, preemption: Preemption, console: Console) -> None:
    """Run the phases that are not finished yet, inside the fit's MLflow run."""
    cluster = record.cluster
    if record.phase != "prepare":
        console.print(record.how_far(), highlight=False, markup=False, soft_wrap=True)
    with fit_tracking(experiment.loaded, record, preemption, console) as tracking:
        context = FitContext(cluster, preemption, record, tracking, console)
        tracking.log_rows(experiment.config.data, experiment.data.contents)
        model = experiment.identity.get(MODEL) if cluster.is_main else None
        commit = cluster.broadcast(None if model is None else model.commit)
        models, milestones = FitModels(experiment, cluster.device, commit), Milestones(experiment, context)
        recorded = record.result("prepare").get("plan")
        plan = fit_plan(experiment, models, recorded, cluster=cluster, console=console)
        while not record.finished:
            preemption.check()  # libraries may have caught what the signal's handler raised
            if record.phase == "prepare":
                record.commit(prepare(experiment, plan, models, milestones, context))
            elif record.phase == "initialise":
                record.commit(initialise(experiment, plan, models, milestones, context))
            elif record.phase == "finish":
                if is_damaged(experiment.folder / FINAL, "stage2", context):
                    record.rewind("stage2")
                    continue
                record.commit(finish(experiment, context))
            else:
                stage = Stage.of(1 if record.phase == "stage1" else 2, experiment, plan)
                if is_damaged(stage.source, stage.source_phase, context):
                    record.rewind(stage.source_phase)  # it is written again first
                    continue
                results, step_offset = run_stage(stage, experiment, plan, models, milestones, context)
                record.commit(results, step_offset=step_offset)
                clear_checkpoints(stage, context)


def prepare(
    experiment: Experiment, plan: LayerPlan, models: FitModels, milestones: Milestones, context: FitContext
) -> dict[str, Any]:
    """Measure the original and the converted model before anything is fitted, and the cache it keeps."""
    lines = "\n".join([*_precision_notes(experiment, models), draw(plan)])
    context.console.print(lines, highlight=False, markup=False, soft_wrap=True)
    recorded = context.record.result("prepare")  # of another point of a sweep
    measured = dict(recorded.get("milestones", {}))
    if ORIGINAL not in measured:
        measured = milestones.measure(ORIGINAL, models.original)
    converted = models.converted(plan)
    if plan.operated:
        measured |= milestones.measure(CONVERTED, converted)
    cache = measure_cache(converted, plan, experiment.shape)
    values = {"kv_cache_bytes": cache.measured, "kv_cache_bytes_unmodified": cache.unmodified}
    metrics = {f"cost/{name}": float(value) for name, value in values.items()}
    context.tracking.log_metrics({**metrics, "cost/kv_retain_rate": cache.retain_rate}, 0)
    context.tracking.log_metrics(experiment.data.report.source_counts(), 0)
    context.tracking.log_text(json.dumps(experiment.data.report.to_dict(), indent=2), "data.json")
    context.tracking.log_text(draw(plan) + "\n", PLAN_FILE)
    for tag, value in {**tags.of_plan(plan), tags.RETAINED: tags.retained(cache.retain_rate)}.items():
        context.tracking.set_tag(tag, value)
    _log_frontier(experiment.folder / SEARCH_FOLDER / FRONTIER, context)
    context.tracking.flush()
    results = {"milestones": measured, "cache": asdict(cache), "plan": plan.to_dict()}
    if "texts" in recorded:
        return results | {"texts": recorded["texts"]}
    return results | HeldOutTexts(experiment, models, context).said(ORIGINAL, models.original)


def initialise(
    experiment: Experiment, plan: LayerPlan, models: FitModels, milestones: Milestones, context: FitContext
) -> dict[str, Any]:
    """Fit the compensations on a sample of the training data and save the starting point of stage 1."""
    results: dict[str, Any] = {}
    converted = models.converted(plan)
    if plan.compensated:
        calibrated = calibrate_start(experiment, models.original, converted, context)
        results = {"calibration": calibrated, "milestones": milestones.measure(INITIAL, converted, step=0)}
        warn_of_harm(results["milestones"], context)
        if plan.open_ranks:
            results["plan"] = log_chosen_ranks(converted, context)
    log_parameters(converted, experiment, context)
    if context.cluster.is_main:
        save_model(experiment.folder / INITIAL, converted, experiment.tokenizer)
        shutil.rmtree(experiment.folder / CALIBRATION_FOLDER, ignore_errors=True)
        results["files"] = file_sums(experiment.folder / INITIAL)
    context.tracking.flush()
    in_memory = InMemory.of(converted, experiment, milestones, context)
    del converted
    models.forget_original()
    saved = reread(experiment.folder / INITIAL, in_memory, models, milestones, context)
    if plan.operated:
        name = INITIAL if plan.compensated else CONVERTED
        results |= HeldOutTexts(experiment, models, context).said(name, saved)
    return results


def finish(experiment: Experiment, context: FitContext) -> dict[str, Any]:
    """Write the table and the plots, and end the MLflow run."""
    if not context.cluster.is_main:
        return {}
    tracking = context.tracking
    result = context.record.manifest.result(experiment.folder, redact(experiment.config.tracking.uri))
    table = as_text(final_table(result))
    with atomic_file(experiment.folder / TABLE_FILE) as file:
        file.write(table.encode())
    if result.gap_closed is not None:
        tracking.log_metrics({"calibration/gap_closed": result.gap_closed}, 0)
    if tracking.mlflow_run is not None:
        curves = {name: tracking.history(f"{name}/loss") for name in ("stage1", "stage2")}
        held_out, about = tracking.history("val/response_loss"), tags.about(experiment.config)
        tracking.log_figure(fit_plots.loss_curve(curves, held_out, *about), "plots/loss")
        losses = {m.label: m.response_loss for m in result.milestones}
        tracking.log_figure(fit_plots.milestones(losses, *about), "plots/milestones")
    log_texts(result.texts, context)
    tracking.log_text(table, TABLE_FILE)
    tracking.set_tag(tags.FINAL_MODEL, str(result.model_folder.resolve()))
    tracking.describe(result)
    tracking.log_model(experiment.loaded)
    tracking.end("FINISHED")
    return {}


def _precision_notes(experiment: Experiment, models: FitModels) -> list[str]:
    """That this machine is the wrong one for the precision the config has."""
    in_bfloat16 = experiment.precision == "bf16-mixed" or models.dtype == torch.bfloat16
    if not in_bfloat16 or computes_in_bfloat16():
        return []
    return [
        "precision: this machine has no bfloat16 in hardware, and emulates it many times slower than float32; "
        "training.precision=32-true does without it."
    ]


def _log_frontier(frontier: Path, context: FitContext) -> None:
    """The plans that a search went through, when the plan came from one."""
    for file in sorted(frontier.rglob("*")):
        if file.is_file():
            context.tracking.log_file(file, str(Path(FRONTIER, file.relative_to(frontier).parent)))


def _prepare_process(*, deterministic: bool) -> None:
    """Quiet libraries, and kernels that repeat themselves where they are to: before the first one runs."""
    quiet_libraries()
    # transformers warns of a fork after tokenisation otherwise, in the middle of the progress bar
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if deterministic:  # calibration and evaluation count too, not only what a Trainer does
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
