"""The MLflow run of a sweep, under which the runs of its points are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from uniattn_pl.config import LoadedConfig
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.sweeps.sweep_folder import SweepFolder
from uniattn_pl.sweeps.view import ViewRow
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.mlflow_run import MLflowRun
from uniattn_pl.tracking.notes import linked, sweep_note

Tell = Callable[[str], None]


def open_parent(base: LoadedConfig, folder: SweepFolder, sweep_id: str, tell: Tell) -> str | None:
    """Create or reopen the sweep's run; returns its id, None while MLflow does not answer.

    The caller keeps other workers out (`Ledger.alone`): two that ask for the run at once would create two.

    Raises:
        UserError: as `MLflowRun.open`.
    """
    run = _opened(base, folder, sweep_id, tell)
    run.log_params({f"sweep.{k}": v for k, v in dataclasses.asdict(base.config.sweep).items()})
    run.log_text(base.to_yaml(), "config.yaml")
    _leave(run, "RUNNING", tell)
    if run.run_id is None:
        tell("points that start before MLflow answers are not shown under the sweep's run.")
    return run.run_id


def close_parent(
    base: LoadedConfig,
    folder: SweepFolder,
    sweep_id: str,
    *,
    status: str,
    best: ViewRow | None,
    table: str,
    tell: Tell,
) -> None:
    """Give the sweep's run its table and its best point, and end it; the caller keeps other workers out."""
    run = _opened(base, folder, sweep_id, tell)
    if best is not None and best.loss is not None:
        run.log_metrics({"sweep/best_response_loss": best.loss}, 0)
        manifest = Manifest.read(best.folder)
        run_id = None if manifest is None else manifest.mlflow_run_id
        run.set_tag(tags.NOTE, sweep_note(linked(best.name, run_id), best.loss))
    run.log_text(table, folder.table.name)
    _leave(run, status, tell)


def _opened(base: LoadedConfig, folder: SweepFolder, sweep_id: str, tell: Tell) -> MLflowRun:
    return MLflowRun.open(
        base.config.tracking,
        name=base.config.name,
        fit_id=sweep_id,
        run_id=None,
        tags={
            **tags.describing(base.config, "sweep", base.architecture.name),
            tags.FOLDER: str(folder.root.resolve()),
        },
        folder=folder.bookkeeping,
        tell=tell,
    )


def _leave(run: MLflowRun, status: str, tell: Tell) -> None:
    if not run.end(status):
        tell(f"{run.leftover()}; the same command delivers them later.")
