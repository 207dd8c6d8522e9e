"""The MLflow run that a folder says it has: whether the store has it, and sending all of it again as another one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.files import atomic_file
from uniattn_pl.tracking import mlflow_store
from uniattn_pl.tracking.delivery_state import FILE, DeliveryState
from uniattn_pl.tracking.journal import FILE as JOURNAL
from uniattn_pl.tracking.journal import FOLDER, journal_owner
from uniattn_pl.tracking.mlflow_run import MLflowRun


def is_lost(config: TrackingConfig, folder: Path, run_id: str | None) -> bool | None:
    """Whether the store of a run folder answers that the folder's MLflow run is deleted or not there.

    Returns:
        None where the store does not answer; False also of another store than the run was delivered to.

    Raises:
        UserError: the URI is not a store's, or the sqlite file is damaged.
    """
    from mlflow.exceptions import MlflowException

    run_id = continued_run(config, folder, run_id)
    if run_id is None:
        return False
    if mlflow_store.is_local(config) and not mlflow_store.database(config).exists():
        return True
    try:
        run = mlflow_store.connect(config).get_run(run_id)
    except MlflowException as error:
        return True if str(error.error_code) == "RESOURCE_DOES_NOT_EXIST" else None
    return str(run.info.lifecycle_stage) == "deleted"


def continued_run(config: TrackingConfig, folder: Path, run_id: str | None) -> str | None:
    """The run in this store that a run folder goes on with; None where it is found by the fit's tag, or made.

    Args:
        run_id: as the folder's manifest has it, which is of the store it was delivered to last.
    """
    delivered = DeliveryState.read(folder / FOLDER / FILE)
    if delivered is None:
        return run_id
    return (delivered.run_id or run_id) if delivered.place == mlflow_store.place(config) else None


def is_in_store(config: TrackingConfig, folder: Path) -> bool:
    """Whether a run folder was delivered to this store last, or to none so far."""
    delivered = DeliveryState.read(folder / FOLDER / FILE)
    return delivered is None or delivered.place == mlflow_store.place(config)


def rename_owner(folder: Path, fit_id: str) -> None:
    """Make the journal of a run folder, if there is one, that of another fit, of which nothing is delivered yet."""
    owner, path = journal_owner(folder), folder / FOLDER / JOURNAL
    if owner is None:
        return
    (folder / FOLDER / FILE).unlink(missing_ok=True)
    rest = path.read_bytes().partition(b"\n")[2]
    with atomic_file(path) as file:
        file.write(json.dumps({**owner, "fit_id": fit_id}).encode() + b"\n" + rest)


def send_again(
    config: TrackingConfig, folder: Path, *, tags: Mapping[str, str], tell: Callable[[str], None] = print
) -> str | None:
    """Make a new MLflow run of all that a finished run has journaled; returns its id, None where nothing answers.

    Raises:
        UserError: as `MLflowRun.open`.
    """
    owner = journal_owner(folder)
    if owner is None:
        return None
    DeliveryState(mlflow_store.place(config)).write(folder / FOLDER / FILE)
    name, fit_id = owner["name"], owner["fit_id"]
    run = MLflowRun.open(config, name=name, fit_id=fit_id, run_id=None, tags=tags, folder=folder, tell=tell)
    if not run.end("FINISHED"):
        tell(f"{run.leftover()}; the same command delivers them later.")
    return run.run_id
