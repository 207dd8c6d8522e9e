"""The whole fit, from the original model to the final table, resumable at any point.

Phases: prepare, initialise, stage1, stage2, finish. All ranks run them together; rank 0 writes. Each phase
writes its products, then commits the manifest in one atomic step; killed before the commit it runs again (a
stage from its last checkpoint), killed after it never does. Metrics reach MLflow before the commit and are
never sent twice, so the run of a resumed fit has neither gaps nor duplicates.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.errors import RunFailure, UserError
from uniattn_pl.plan import LayerPlan
from uniattn_pl.redaction import redact
from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.resilience.failures import explained
from uniattn_pl.resilience.manifest import Manifest, exclusive, key_of
from uniattn_pl.resilience.preemption import Preempted, Preemption
from uniattn_pl.run_folder import check_run_folder
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.final_table import final_report
from uniattn_pl.tracking.fit_result import FitResult
from uniattn_pl.tracking.mlflow_run import MLflowRun, deliver_pending
from uniattn_pl.training import phases
from uniattn_pl.training.session import FitSession
from uniattn_pl.training.stage import quiet_libraries, run_stage

STEPS: dict[str, Callable[[FitSession], None]] = {
    "prepare": phases.prepare,
    "initialise": phases.initialise,
    "stage1": partial(run_stage, stage=1),
    "stage2": partial(run_stage, stage=2),
    "finish": phases.finish,
}


def fit(loaded: LoadedConfig, *, allow_changes: bool = False) -> FitResult:
    """Run an experiment, or what a killed one has left; a finished one only shows its table again.

    Args:
        loaded: the checked experiment; its trainer.default_root_dir is the run folder.
        allow_changes: go on with another config than the folder was started with.

    Raises:
        UserError: the input does not work out, the folder belongs to another experiment or is in use.
        TrainingDivergedError: the loss or a gradient became NaN or infinite, or exploded.
        RunFailure: anything else outside of this program that a fit cannot go on without, such as room on the disk.
    """
    quiet_libraries()
    # transformers warns of a fork after tokenisation otherwise, in the middle of the progress bar
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if loaded.config.trainer.deterministic:
        _compute_deterministically()
    cluster, preemption = Cluster(loaded.config), Preemption()
    with preemption.watch(), ExitStack() as stack:
        try:
            result = _fit(loaded, cluster, preemption, stack, allow_changes=allow_changes)
            cluster.close()  # after an error other ranks may never answer
            return result
        except BaseException as error:
            if isinstance(error, UserError | RunFailure):  # every rank has met it
                cluster.let_parent_end()
            reason = explained(error, cluster.world_size, loaded.config.trainer.default_root_dir)
            if reason is None:
                raise
            raise RunFailure(reason) from error


def _fit(
    loaded: LoadedConfig, cluster: Cluster, preemption: Preemption, stack: ExitStack, *, allow_changes: bool
) -> FitResult:
    folder = Path(loaded.config.trainer.default_root_dir)
    starts_others = cluster.starts_others
    if not starts_others:
        cluster.launch()
    console, session = Console(quiet=not cluster.is_main), None
    manifest = Manifest(plain_config(loaded))
    if cluster.is_main:
        check_run_folder(folder)
        stack.enter_context(exclusive(folder))
        manifest = _manifest(loaded, folder, allow_changes=allow_changes)
        if starts_others and manifest.phase != "done":
            # what is wrong with the input shows before other processes are started
            session = FitSession(loaded, manifest, console, cluster, preemption)
            cluster.launch()
    if not (starts_others and manifest.phase == "done"):
        manifest = cluster.broadcast(manifest)
    if manifest.phase == "done":
        console.print(f"the fit in {folder} is finished; nothing was run.", highlight=False)
        if cluster.is_main:
            _deliver(loaded, manifest, console)
    else:
        _run(session or FitSession(loaded, manifest, console, cluster, preemption))
    result = manifest.result(folder, redact(loaded.config.tracking.uri))
    # commands must be copied as they are, so lines are not broken
    console.print(final_report(result), soft_wrap=True)
    return result


def _manifest(loaded: LoadedConfig, folder: Path, *, allow_changes: bool) -> Manifest:
    """The folder's manifest, or a new one.

    Raises:
        UserError: the folder was started with another config, and changes are not allowed.
    """
    config = plain_config(loaded)
    manifest = Manifest.read(folder) or Manifest(config)
    if not allow_changes:
        manifest.check_same_config(config, folder)
    manifest.config = config
    manifest.write(folder)
    return manifest


def _run(session: FitSession) -> None:
    """Run the phases that are left inside the fit's MLflow run."""
    if session.cluster.is_main:
        _open_run(session)
    try:
        if session.cluster.is_main:
            phases.log_start(session)
        while session.manifest.phase != "done":
            session.preemption.check()  # libraries may have caught what the signal's handler raised
            STEPS[session.manifest.phase](session)
    except (KeyboardInterrupt, Preempted):
        _end(session, "KILLED")
        raise
    except BaseException:
        _end(session, "FAILED")
        raise


def _open_run(session: FitSession) -> None:
    manifest, config = session.manifest, session.config
    said = tags.describing(config, "fit", session.loaded.architecture.name)
    said[tags.FOLDER] = str(session.folder.resolve())
    said[tags.EXPERIMENT] = key_of(manifest.config)
    known = manifest.results.get("prepare", {}).get("plan")
    if known:  # of a fit that goes on, or begins with what another point of a sweep has calibrated
        said[tags.PLAN] = tags.plan_digest(LayerPlan.from_dict(known))
    if config.tracking.parent_run is not None:
        said[tags.PARENT] = config.tracking.parent_run
    run = MLflowRun.open(
        config.tracking,
        name=config.name,
        fit_id=manifest.fit_id,
        run_id=manifest.mlflow_run_id,
        tags=said,
        folder=session.folder,
        tell=_printer(session.console),
    )
    manifest.mlflow_run_id, session.run = run.run_id, run
    manifest.write(session.folder)


def _end(session: FitSession, status: str) -> None:
    """End the MLflow run; neither a second signal nor a full disk may hide why the fit ends."""
    with session.preemption.deferred(), suppress(OSError):
        phases.end_run(session, status)


def _deliver(loaded: LoadedConfig, manifest: Manifest, console: Console) -> None:
    """Send MLflow what a finished fit could not."""
    folder, tell = Path(loaded.config.trainer.default_root_dir), _printer(console)
    left = deliver_pending(loaded.config.tracking, folder, run_id=manifest.mlflow_run_id, tell=tell)
    if left:
        tell(f"{left} entries are not in MLflow yet, as it does not answer; they are kept in {folder / 'tracking'}.")


def _printer(console: Console) -> Callable[[str], None]:
    """Print one line as it is."""
    return partial(console.print, highlight=False, markup=False, soft_wrap=True)


def _compute_deterministically() -> None:
    """Before the first kernel runs: calibration and evaluation count too, not only what a Trainer does."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
