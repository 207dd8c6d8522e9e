"""The MLflow run of a fit: one for all its stages and resumes, opened and ended on rank 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.plan import LayerPlan
from uniattn_pl.resilience.manifest import key_of
from uniattn_pl.resilience.preemption import Preempted, Preemption
from uniattn_pl.resilience.run_record import RunRecord
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.lost_run import is_lost, send_again
from uniattn_pl.tracking.mlflow_run import MLflowRun, deliver_pending
from uniattn_pl.training.callbacks.provenance import Provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG_FILE = "config.yaml"


class FitTracking:
    """What a fit logs; on ranks other than 0, which have no run, nothing.

    Args:
        mlflow_run: rank 0's, or None.
        record: of the fit, which keeps the run's id.
        console: where is told what could not be delivered.
    """

    def __init__(self, mlflow_run: MLflowRun | None, record: RunRecord, console: Console) -> None:
        self.mlflow_run, self.record, self.console = mlflow_run, record, console

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Points of curves, after so many optimizer steps of the fit."""
        if self.mlflow_run is not None:
            self.mlflow_run.log_metrics(dict(metrics), step)

    def log_text(self, text: str, name: str) -> None:
        """A text as an artifact."""
        if self.mlflow_run is not None:
            self.mlflow_run.log_text(text, name)

    def log_figure(self, figure: Figure, name: str) -> None:
        """A figure as an artifact."""
        if self.mlflow_run is not None:
            self.mlflow_run.log_figure(figure, name)

    def log_file(self, file: Path, folder: str | None = None) -> None:
        """A file as an artifact."""
        if self.mlflow_run is not None:
            self.mlflow_run.log_file(file, folder)

    def set_tag(self, name: str, value: str) -> None:
        """A tag of the run."""
        if self.mlflow_run is not None:
            self.mlflow_run.set_tag(name, value)

    def history(self, metric: str) -> list[tuple[int, float]]:
        """The points of a metric logged so far."""
        return [] if self.mlflow_run is None else self.mlflow_run.history(metric)

    def flush(self) -> None:
        """Keep everything logged so far safe: in the run folder, and in MLflow where it answers."""
        if self.mlflow_run is not None:
            self.mlflow_run.flush()

    def end(self, status: str) -> None:
        """End the MLflow run; what could not be delivered is told and stays in the run folder."""
        if self.mlflow_run is None:
            return
        if not self.mlflow_run.end(status):
            printer(self.console)(f"{self.mlflow_run.leftover()}; the same command delivers them later.")
        self.record.manifest.mlflow_run_id = self.mlflow_run.run_id


@contextmanager
def fit_tracking(
    loaded: LoadedConfig, record: RunRecord, preemption: Preemption, console: Console
) -> Iterator[FitTracking]:
    """Open the fit's run, record what is run, from which code, on what, and end the run as the block ends.

    The block ends it itself when the fit is finished. Metrics reach MLflow before a phase is committed and are never
    sent twice, so the run of a resumed fit has neither gaps nor duplicates.
    """
    tracking = FitTracking(_opened(loaded, record, console), record, console)
    try:
        if tracking.mlflow_run is not None:
            manifest = record.manifest
            provenance = Provenance(plain_config(loaded), identity=manifest.identity).write(
                record.folder, step=manifest.step_offset
            )
            tracking.mlflow_run.log_params(loaded.flatten())
            tracking.mlflow_run.log_text(loaded.to_yaml(), CONFIG_FILE)
            tracking.mlflow_run.log_file(provenance)
        yield tracking
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt | Preempted) else "FAILED"
        # neither a second signal nor a full disk may hide why the fit ends
        with preemption.deferred(), suppress(OSError):
            tracking.end(status)
        raise


def deliver_rest(loaded: LoadedConfig, record: RunRecord, console: Console) -> None:
    """Send MLflow what a finished fit could not, or all of it where its run has been deleted; of rank 0."""
    tell, manifest, tracking = printer(console), record.manifest, loaded.config.tracking
    if is_lost(tracking, record.folder, manifest.mlflow_run_id):
        tell(f"its MLflow run {manifest.mlflow_run_id} is deleted; what it had is sent again, as a new run.")
        parent = {} if tracking.parent_run is None else {tags.PARENT: tracking.parent_run}
        manifest.mlflow_run_id = send_again(tracking, record.folder, tags=parent, tell=tell)
        manifest.write(record.folder)
        return
    rest = deliver_pending(loaded.config.tracking, record.folder, run_id=record.manifest.mlflow_run_id, tell=tell)
    if rest:
        kept = record.folder / "tracking"
        tell(f"{rest} entries are not in MLflow yet, as it does not answer; they are kept in {kept}.")


def printer(console: Console) -> Callable[[str], None]:
    """Print one line as it is."""
    return partial(console.print, highlight=False, markup=False, soft_wrap=True)


def _opened(loaded: LoadedConfig, record: RunRecord, console: Console) -> MLflowRun | None:
    if not record.cluster.is_main:
        return None
    manifest, config = record.manifest, loaded.config
    run_tags = tags.describing(config, "fit", loaded.architecture.name)
    run_tags[tags.FOLDER] = str(record.folder.resolve())
    run_tags[tags.EXPERIMENT] = key_of(manifest.config)
    recorded = record.manifest.plan
    if recorded:  # of a fit that goes on, or begins with what another point of a sweep has calibrated
        run_tags[tags.PLAN] = tags.plan_digest(LayerPlan.from_dict(recorded))
    if config.tracking.parent_run is not None:
        run_tags[tags.PARENT] = config.tracking.parent_run
    run = MLflowRun.open(
        config.tracking,
        name=config.name,
        fit_id=manifest.fit_id,
        run_id=manifest.mlflow_run_id,
        tags=run_tags,
        folder=record.folder,
        tell=printer(console),
    )
    manifest.mlflow_run_id = run.run_id
    manifest.write(record.folder)
    return run
