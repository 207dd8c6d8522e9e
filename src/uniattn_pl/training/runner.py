"""The whole fit, from the original model to the final table, resumable at any point.

Phases: prepare, initialise, stage1, stage2, finish. Each writes its products, then commits the manifest
in one atomic step; killed before the commit it runs again (a stage from its last checkpoint), killed
after it never does. Metrics reach MLflow before the commit and are never sent twice, so the run of a
resumed fit has neither gaps nor duplicates.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lightning.fabric.utilities.rank_zero import _get_rank
from rich.console import Console

from uniattn_pl.config import LoadedConfig
from uniattn_pl.tracking.mlflow_run import FOLDER_TAG, MLflowRun, deliver_pending
from uniattn_pl.tracking.redaction import redact
from uniattn_pl.tracking.results import FitResult
from uniattn_pl.tracking.tables import final_report
from uniattn_pl.training import phases
from uniattn_pl.training.manifest import PHASES, Manifest, exclusive
from uniattn_pl.training.session import FitSession, plain_config
from uniattn_pl.training.stage import quiet_libraries, run_stage

POLL_S = 0.2
STEPS: dict[str, Callable[[FitSession], None]] = {
    "prepare": phases.prepare,
    "initialise": phases.initialise,
    "stage1": partial(run_stage, stage=1),
    "stage2": partial(run_stage, stage=2),
    "finish": phases.finish,
}


def fit(loaded: LoadedConfig) -> FitResult:
    """Run an experiment, or what a killed one has left; a finished one only shows its table again.

    Args:
        loaded: the checked experiment; its trainer.default_root_dir is the run folder.

    Raises:
        UserError: the input does not work out, the folder belongs to another experiment or is in use.
        TrainingDivergedError: the loss or a gradient became NaN or infinite.
    """
    quiet_libraries()
    # transformers warns of a fork after tokenisation otherwise, in the middle of the progress bar
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    console = Console()
    if _get_rank() not in (None, 0):
        return _follow(loaded)
    folder = Path(loaded.config.trainer.default_root_dir)
    with exclusive(folder):
        manifest = Manifest.read(folder)
        if manifest is None:
            manifest = Manifest(plain_config(loaded))
        manifest.check_same_config(plain_config(loaded), folder)
        if manifest.phase == "done":
            console.print(f"the fit in {folder} is finished; nothing was run.", highlight=False)
            _deliver(loaded, manifest, console)
        else:
            _run(FitSession(loaded, manifest, console))
        result = manifest.result(folder, redact(loaded.config.tracking.uri))
        # commands must be copied as they are, so lines are not broken
        console.print(final_report(result), soft_wrap=True)
        return result


def _run(session: FitSession) -> None:
    """Run the phases that are left inside the fit's MLflow run."""
    manifest, config = session.manifest, session.config
    manifest.write(session.folder)
    tags = {FOLDER_TAG: str(session.folder.resolve()), "uniattn_pl.architecture": session.loaded.architecture.name}
    run = MLflowRun.open(
        config.tracking,
        name=config.name,
        fit_id=manifest.fit_id,
        run_id=manifest.mlflow_run_id,
        tags=tags,
        folder=session.folder,
        tell=_printer(session.console),
    )
    manifest.mlflow_run_id, session.run = run.run_id, run
    manifest.write(session.folder)
    try:
        phases.log_start(session)
        while manifest.phase != "done":
            STEPS[manifest.phase](session)
    except KeyboardInterrupt:
        phases.end_run(session, "KILLED")
        raise
    except BaseException:
        phases.end_run(session, "FAILED")
        raise


def _deliver(loaded: LoadedConfig, manifest: Manifest, console: Console) -> None:
    """Send MLflow what a finished fit could not."""
    folder, tell = Path(loaded.config.trainer.default_root_dir), _printer(console)
    left = deliver_pending(loaded.config.tracking, folder, run_id=manifest.mlflow_run_id, tell=tell)
    if left:
        tell(f"{left} entries are not in MLflow yet, as it does not answer; they are kept in {folder / 'tracking'}.")


def _printer(console: Console) -> Callable[[str], None]:
    """Print one line as it is."""
    return partial(console.print, highlight=False, markup=False, soft_wrap=True)


def _follow(loaded: LoadedConfig) -> FitResult:
    """What ranks other than 0 do: join each training stage once rank 0's manifest has reached it."""
    folder = Path(loaded.config.trainer.default_root_dir)
    manifest = _wait_for(folder, "stage1")
    session = FitSession(loaded, manifest, Console(quiet=True))
    for stage in (1, 2):
        session.manifest = _wait_for(folder, f"stage{stage}")
        if session.manifest.phase == f"stage{stage}":
            run_stage(session, stage)
    return _wait_for(folder, "done").result(folder, redact(loaded.config.tracking.uri))


def _wait_for(folder: Path, phase: str) -> Manifest:
    """Read the manifest until it has reached `phase`; whoever started the ranks stops them if rank 0 dies."""
    while True:
        manifest = Manifest.read(folder)
        if manifest is not None and PHASES.index(manifest.phase) >= PHASES.index(phase):
            return manifest
        time.sleep(POLL_S)
