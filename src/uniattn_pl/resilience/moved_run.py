"""Runs that were moved or copied since they last ran: they go on where they are, and leave the former place alone."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.tracking.lost_run import is_in_store, rename_owner


def settle(manifest: Manifest, folder: Path, config: TrackingConfig) -> str | None:
    """Take the folder that a manifest was read from as the place of its run; the caller holds and writes it.

    A copy that would log to the MLflow run of its original is a fit of its own from here on, with all that it has
    logged.

    Args:
        config: where it logs to.

    Returns:
        What to tell of a copy, else None.
    """
    copied, former = is_copy(manifest, folder, config), manifest.folder
    manifest.folder = str(folder.resolve())
    if not copied:
        return None
    fit_id = uuid.uuid4().hex
    rename_owner(folder, fit_id)
    manifest.fit_id, manifest.mlflow_run_id = fit_id, None
    return f"{folder} is a copy of the run in {former}, which stays as it is: it gets an MLflow run of its own."


def is_copy(manifest: Manifest, folder: Path, config: TrackingConfig) -> bool:
    """Whether the same fit is still in its former place, which is not this one by another path, and logs here, too."""
    former, here = manifest.folder, folder.resolve()
    if former is None or Path(former) == here or not is_in_store(config, folder):
        return False
    try:
        original = Manifest.read(Path(former))
        return original is not None and original.fit_id == manifest.fit_id and not os.path.samefile(former, here)
    except (UserError, OSError):  # no manifest of this version, or a place that may not be read
        return False
