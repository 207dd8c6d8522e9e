"""The phases of a fit that do not train: measure, convert, initialise, finish."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.display.progress import ProgressReporter
from uniattn_pl.files import atomic_file
from uniattn_pl.modeling.caches.plan_cache import CacheMismatchError, kv_cache_bytes
from uniattn_pl.modeling.loading.pretrained import computes_in_bfloat16
from uniattn_pl.plan import LayerPlan, costs
from uniattn_pl.redaction import redact
from uniattn_pl.resilience.model_folders import file_sums, save_model
from uniattn_pl.search.frontier import FRONTIER
from uniattn_pl.tracking import fit_plots, tags
from uniattn_pl.tracking.final_table import as_text, final_report
from uniattn_pl.tracking.fit_result import CONVERTED, INITIAL, ORIGINAL, CacheCost
from uniattn_pl.tracking.mlflow_run import MLflowRun
from uniattn_pl.training.callbacks.compensation_init import CompensationInit
from uniattn_pl.training.callbacks.provenance import Provenance
from uniattn_pl.training.session import SEARCH_FOLDER, FitSession

CALIBRATION_FOLDER = "calibration"
PLAN_FILE, CONFIG_FILE, TABLE_FILE = "plan.txt", "config.yaml", "final_table.txt"


def prepare(session: FitSession) -> None:
    """Measure the original and the converted model before anything is fitted, and the cache it keeps."""
    report = session.data.report
    plan = session.plan
    lines = "\n".join([*report.lines(), *_precision_notes(session), plan.draw()])
    session.console.print(lines, highlight=False, markup=False, soft_wrap=True)
    known = session.manifest.results.get("prepare", {}).get("milestones", {})  # of another point of a sweep
    milestones = dict(known) if ORIGINAL in known else session.milestone(ORIGINAL, session.original)
    converted = session.converted()
    if session.plan.operated:
        milestones |= session.milestone(CONVERTED, converted)
    cache = measure_cache(session, converted)
    if session.run is not None:
        values = {"kv_cache_bytes": cache.measured, "kv_cache_bytes_unmodified": cache.unmodified}
        values["parameters"] = sum(p.numel() for p in converted.parameters())
        metrics = {f"cost/{name}": float(value) for name, value in values.items()}
        session.run.log_metrics({**metrics, "cost/kv_retain_rate": cache.retain_rate}, 0)
        session.run.log_text(json.dumps(report.to_dict(), indent=2), "data.json")
        session.run.log_text(session.plan.draw() + "\n", PLAN_FILE)
        session.run.set_tag(tags.PLAN, tags.plan_digest(session.plan))
        _log_search(session, session.run)
        session.run.flush()
    results = {"milestones": milestones, "cache": asdict(cache), "plan": session.plan.to_dict()}
    session.commit(results)


def _precision_notes(session: FitSession) -> list[str]:
    """That this machine is the wrong one for the precision asked for."""
    asked = session.precision == "bf16-mixed" or session.dtype == torch.bfloat16
    if not asked or computes_in_bfloat16():
        return []
    return [
        "precision: this machine has no bfloat16 in hardware, and emulates it many times slower than float32; "
        "training.precision=32-true does without it."
    ]


def _log_search(session: FitSession, run: MLflowRun) -> None:
    """The frontier of a search, when the plan came from one."""
    frontier = session.folder / SEARCH_FOLDER / FRONTIER
    if frontier.is_dir():
        for file in sorted(frontier.rglob("*")):
            if file.is_file():
                run.log_file(file, str(Path(FRONTIER, file.relative_to(frontier).parent)))


def measure_cache(session: FitSession, model: PreTrainedModel) -> CacheCost:
    """Run one sequence, count the bytes its cache really holds, and compare them with the plan's.

    Raises:
        CacheMismatchError: they differ, so that either the model or the cost functions are wrong.
    """
    length = min(costs.CACHE_LENGTH, getattr(model.config, "max_position_embeddings", None) or costs.CACHE_LENGTH)
    tokens = torch.arange(length, device=model.device).unsqueeze(0) % session.shape.vocab_size
    with torch.no_grad():
        output = model(input_ids=tokens, use_cache=True, logits_to_keep=1)
    size: dict[str, Any] = {"batch_size": 1, "length": length, "bytes_per_element": model.dtype.itemsize}
    cost = CacheCost(
        length=length,
        measured=kv_cache_bytes(output.past_key_values),
        predicted=costs.kv_cache_bytes(session.plan, session.shape, **size),
        unmodified=costs.kv_cache_bytes(LayerPlan.unmodified(session.shape.num_layers), session.shape, **size),
    )
    if cost.measured != cost.predicted:
        raise CacheMismatchError(
            f"the KV cache of {length} tokens holds {cost.measured} bytes, the plan predicts {cost.predicted}."
        )
    return cost


def initialise(session: FitSession) -> None:
    """Fit the compensations on a sample of the training data and save the starting point of stage 1."""
    results: dict[str, Any] = {}
    converted = session.converted()
    if session.plan.compensated:
        report = _calibrate(session, converted)
        results = {"calibration": report, "milestones": session.milestone(INITIAL, converted, step=0)}
    if session.cluster.is_main:
        save_model(session.folder / INITIAL, converted, session.tokenizer)
        shutil.rmtree(session.folder / CALIBRATION_FOLDER, ignore_errors=True)
        results["files"] = file_sums(session.folder / INITIAL)
    if session.run is not None:
        session.run.flush()
    session.forget_original()
    session.commit(results)


def _calibrate(session: FitSession, converted: PreTrainedModel) -> dict[str, Any]:
    options, data, ranks = session.config.calibration, session.data, session.cluster.world_size
    # a batch for every rank at least
    batch_size = max(1, min(options.batch_size, options.num_samples // ranks))
    held_out = max(options.held_out_samples, ranks)
    held_out_batch_size = max(1, min(batch_size, held_out // ranks))
    with ProgressReporter("calibration", session.console) as progress:
        callback = CompensationInit(
            session.original,
            data.train_batches(options.num_samples, batch_size, first=options.skip_samples),
            data.validation_batches(held_out, held_out_batch_size),
            initialiser=options.initialiser,
            ridge=options.ridge,
            head_alignment=options.head_alignment,
            record=session.folder / CALIBRATION_FOLDER,
            memory_limit_bytes=int(options.memory_limit_gib * 2**30),
            progress=progress.update,
        )
        report = callback.initialise(converted)
    session.console.print("\n".join(report.lines()), highlight=False)
    if session.run is not None:
        errors = {"calibration/error_before": report.error_before, "calibration/error_after": report.error_after}
        session.run.log_metrics(errors, 0)
        session.run.log_text(json.dumps(report.to_dict(), indent=2), "calibration.json")
        session.run.log_text("\n".join(report.lines()) + "\n", "calibration.txt")
    return report.to_dict()


def log_start(session: FitSession) -> None:
    """Record what is run, from which code, on what: in the run folder and in MLflow. Of rank 0."""
    provenance = Provenance(plain_config(session.loaded)).write(session.folder, step=session.manifest.step_offset)
    if session.run is None:
        return
    session.run.log_params(session.loaded.flatten())
    session.run.log_text(session.loaded.to_yaml(), CONFIG_FILE)
    session.run.log_file(provenance)


def finish(session: FitSession) -> None:
    """Write the table and the plots, end the MLflow run, and mark the fit done."""
    if session.cluster.is_main:
        _write_results(session)
    session.commit({})


def _write_results(session: FitSession) -> None:
    result = session.manifest.result(session.folder, redact(session.config.tracking.uri))
    report = as_text(final_report(result))
    with atomic_file(session.folder / TABLE_FILE) as file:
        file.write(report.encode())
    if session.run is not None:
        run = session.run
        if result.gap_closed is not None:
            run.log_metrics({"calibration/gap_closed": result.gap_closed}, 0)
        curves = {name: run.history(f"{name}/loss") for name in ("stage1", "stage2")}
        run.log_figure(fit_plots.loss_curve(curves, run.history("val/response_loss")), "plots/loss.png")
        losses = {m.label: m.response_loss for m in result.milestones}
        run.log_figure(fit_plots.milestones(losses), "plots/milestones.png")
        run.log_text(report, TABLE_FILE)
        run.set_tag("uniattn_pl.final_model", str(result.model_folder.resolve()))
        end_run(session, "FINISHED")


def end_run(session: FitSession, status: str) -> None:
    """End the fit's MLflow run; what could not be delivered is told and stays in the run folder."""
    if session.run is None:
        return
    if not session.run.end(status):
        line = f"{session.run.leftover()}; the same command delivers them later."
        session.console.print(line, highlight=False, markup=False, soft_wrap=True)
    session.manifest.mlflow_run_id = session.run.run_id
