"""An evaluation in MLflow: in the run of the fit that made the model, else in a run of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from uniattn_pl.config import LoadedConfig
from uniattn_pl.evaluation.evaluation_results import Result
from uniattn_pl.evaluation.subject import Subject
from uniattn_pl.resilience.manifest import Manifest, exclusive
from uniattn_pl.resilience.moved_run import is_copy, settle
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.data_inputs import DataInput
from uniattn_pl.tracking.lost_run import continued_run
from uniattn_pl.tracking.mlflow_run import MLflowRun, reopened
from uniattn_pl.tracking.mlflow_store import check_experiment, connect, find_or_create_run, is_local
from uniattn_pl.tracking.one_off_run import one_off_run
from uniattn_pl.tracking.run_params import set_params

FILES = ("results.json", "table.txt")
LONGEST_TABLE = 1000  # rows; MLflow's pages load a table whole, and results.json has every row


def check_store(loaded: LoadedConfig, subject: Subject) -> None:
    """Check the tracking store before hours of work; a server that does not answer is waited for later.

    Raises:
        UserError: the store cannot be opened, its experiment is deleted, or it is a local one that has had
            the fit's run and does not have it any more.
    """
    config = loaded.config.tracking
    client = connect(config)
    manifest = None if subject.run is None else Manifest.read(subject.run)
    run_id = None
    if subject.run is not None and manifest is not None and not is_copy(manifest, subject.run, config):
        run_id = continued_run(config, subject.run, manifest.mlflow_run_id)
    if manifest is None or run_id is None:
        check_experiment(config)
    elif is_local(config):
        find_or_create_run(client, config, name=loaded.config.name, fit_id=manifest.fit_id, run_id=run_id)


def track(
    loaded: LoadedConfig,
    subject: Subject,
    results: list[Result],
    folder: Path,
    *,
    scored: Mapping[str, DataInput],
    retain_rates: Mapping[str, float],
) -> None:
    """Log `eval/TASK/METRIC`, with `_low` and `_high` where there is an interval, the rows, tables and result files.

    Args:
        scored: name of a result -> the rows it is of.
        retain_rates: suffix of a variant with less cache -> its bytes over the unmodified model's.

    Raises:
        UserError: the store does not have the fit's run, or another process works in its folder.
    """
    costs = {f"cost/kv_retain_rate{suffix}": rate for suffix, rate in retain_rates.items()}
    if subject.run is None:
        run_tags = tags.describing(loaded.config, "evaluation", loaded.architecture.name)
        run_tags[tags.MODEL] = tags.short_name(str(subject.folder or subject.source))
        name = f"{loaded.config.name}-evaluation"
        with one_off_run(loaded.config.tracking, folder.parent, name=name, tags=run_tags) as run:
            run.log_params(set_params(loaded))
            _log(run, results, scored, costs, 0, folder)
        return
    with exclusive(subject.run):
        manifest = Manifest.read(subject.run)
        assert manifest is not None  # a subject's run folder has one
        moved = settle(manifest, subject.run, loaded.config.tracking)
        if moved is not None:
            print(moved)
        with reopened(
            loaded.config.tracking,
            subject.run,
            name=str(manifest.config.get("name", loaded.config.name)),
            fit_id=manifest.fit_id,
            run_id=manifest.mlflow_run_id,
        ) as fit:
            fit.set_tag(tags.FOLDER, str(subject.run.resolve()))
            _log(fit, results, scored, costs, manifest.step_offset, folder)
        if fit.run_id is not None:
            manifest.mlflow_run_id = fit.run_id
        manifest.write(subject.run)
        if fit.pending:
            print(f"{fit.leftover()}; the same command delivers them later.")


def _metrics(result: Result) -> dict[str, float]:
    metrics = {}
    for metric, figure in result.figures.items():
        key = f"eval/{result.name}/{metric}"
        metrics[key] = figure.value
        if figure.low is not None and figure.high is not None:
            metrics |= {f"{key}_low": figure.low, f"{key}_high": figure.high}
    return metrics


def _log(
    run: MLflowRun,
    results: list[Result],
    scored: Mapping[str, DataInput],
    costs: Mapping[str, float],
    step: int,
    folder: Path,
) -> None:
    for rows in scored.values():
        run.log_input(rows)
    for result in results:
        _log_anew(run, _metrics(result), step, scored.get(result.name))
        if 0 < len(result.details) <= LONGEST_TABLE:
            name = re.sub(r"[^\w.=-]", "_", result.name)
            run.log_table(result.details, f"{folder.name}/tables/{name}.json")
    _log_anew(run, costs, step, None)
    for name in FILES:
        run.log_file(folder / name, folder.name)


def _log_anew(run: MLflowRun, metrics: Mapping[str, float], step: int, rows: DataInput | None) -> None:
    """A metric that was logged before, with another value, gets the next step: a run's steps only go forward."""
    for key, value in metrics.items():
        history = run.history(key)
        if not history or history[-1][1] != value:
            run.log_model_metrics({key: value}, history[-1][0] + 1 if history else step, rows)
