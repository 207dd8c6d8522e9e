"""Runs that were moved or copied since they last ran: they go on where they are, and leave the former place alone."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from uniattn_pl.errors import UserError
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.tracking.lost_run import rename_owner


def settle(manifest: Manifest, folder: Path) -> str | None:
    """Take the folder that a manifest was read from as the place of its run; the caller holds and writes it.

    A run whose original is still where it was is a copy: from here on it is a fit of its own, with all that it has
    logged, so that two fits never log to one MLflow run.

    Returns:
        What to tell, or None where the run has not moved.
    """
    here = folder.resolve()
    former, manifest.folder = manifest.folder, str(here)
    if former is None or Path(former) == here or not _is_elsewhere(Path(former), here, manifest.fit_id):
        return None
    fit_id = uuid.uuid4().hex
    rename_owner(folder, fit_id)
    manifest.fit_id, manifest.mlflow_run_id = fit_id, None
    return f"{folder} is a copy of the run in {former}, which stays as it is: it gets an MLflow run of its own."


def is_copy(manifest: Manifest, folder: Path) -> bool:
    """Whether `settle` would make the run one of its own."""
    former, here = manifest.folder, folder.resolve()
    return former is not None and Path(former) != here and _is_elsewhere(Path(former), here, manifest.fit_id)


def _is_elsewhere(former: Path, here: Path, fit_id: str) -> bool:
    """Whether the same fit is still in its former place, which is not this one by another path."""
    try:
        original = Manifest.read(former)
        return original is not None and original.fit_id == fit_id and not os.path.samefile(former, here)
    except (UserError, OSError):  # no manifest of this version, or a place that may not be read
        return False
