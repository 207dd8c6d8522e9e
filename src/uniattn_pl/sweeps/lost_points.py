"""What the ledger vouches for and is not there any more: run folders, models, MLflow runs, evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.evaluation.evaluate import FOLDER as EVALUATION
from uniattn_pl.evaluation.mlflow_logging import FILES
from uniattn_pl.resilience.manifest import FILE_NAME, Manifest
from uniattn_pl.resilience.model_folders import lost_files
from uniattn_pl.run_folder import FINAL
from uniattn_pl.sweeps.jobs import FIT, Job
from uniattn_pl.sweeps.point_state import PointState
from uniattn_pl.tracking.lost_run import is_lost


def lost_jobs(
    jobs: Mapping[str, Job], states: Mapping[str, PointState], folders: Mapping[str, Path], tracking: TrackingConfig
) -> dict[str, str]:
    """Key -> what is lost, in words, of the jobs that are finished here; whose point's model is lost has no evaluation.

    Raises:
        UserError: the tracking store cannot be opened.
    """
    lost: dict[str, str] = {}
    answers: bool | None = False
    for key, job in jobs.items():
        folder, state = folders[job.point.key], states[key]
        elsewhere = state.place is not None and not (folder / FILE_NAME).is_file()
        if state.state != "finished" or elsewhere:
            continue
        if job.command == FIT:
            problem = lost_model(folder)
            if problem is None and answers is not None:  # a server that is away is not waited for again and again
                answers = run_lost(folder, tracking)
                problem = "its MLflow run is deleted" if answers else None
        elif lost_model(folder) is None and (folder / EVALUATION / FILES[0]).is_file():
            problem = None
        else:
            problem = f"its evaluation in {folder / EVALUATION} is gone"
        if problem is not None:
            lost[key] = problem
    return lost


def lost_model(folder: Path) -> str | None:
    """What is missing of a finished fit's folder, in words."""
    manifest = Manifest.read(folder)
    if manifest is None:
        return f"its run folder {folder} is gone"
    if manifest.phase != "done":
        return f"its fit in {folder} is not finished"
    names = lost_files(folder, manifest.results)
    return f"its model {folder / FINAL} is damaged or gone ({', '.join(names)})" if names else None


def run_lost(folder: Path, tracking: TrackingConfig) -> bool | None:
    """Whether the store does not have the MLflow run of a finished fit any more; None where it does not answer."""
    manifest = Manifest.read(folder)
    return manifest is not None and is_lost(tracking, folder, manifest.mlflow_run_id)
