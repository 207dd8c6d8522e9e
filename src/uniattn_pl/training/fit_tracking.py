"""The MLflow run of a fit: one for all its stages and resumes, opened and ended on rank 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.plan import LayerPlan
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, TRAINING_ROWS, Identity
from uniattn_pl.resilience.manifest import Manifest, key_of
from uniattn_pl.resilience.preemption import Preempted, Preemption
from uniattn_pl.resilience.run_record import RunRecord
from uniattn_pl.run_folder import FINAL, run_name
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.data_inputs import held_out_rows, training_rows
from uniattn_pl.tracking.fit_description import finished_note
from uniattn_pl.tracking.fit_result import FitResult
from uniattn_pl.tracking.journal import journal_owner
from uniattn_pl.tracking.lost_run import continued_run, is_lost, send_again
from uniattn_pl.tracking.mlflow_run import MLflowRun, reopened
from uniattn_pl.tracking.notes import fit_note, linked
from uniattn_pl.tracking.other_loggers import OtherLoggers
from uniattn_pl.tracking.run_params import set_params
from uniattn_pl.tracking.store_check import check_beside
from uniattn_pl.tracking.system_metrics import SystemMetrics
from uniattn_pl.training.callbacks.provenance import Provenance
from uniattn_pl.training.model_record import final_figures, model_record
from uniattn_pl.training.teacher_checks import teacher_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG_FILE = "config.yaml"


class FitTracking:
    """What a fit logs; on ranks other than 0, which have no run, nothing.

    Args:
        mlflow_run: rank 0's, or None.
        record: of the fit, which keeps the run's id.
        console: where is told what could not be delivered.
        beside: what measures or writes beside the run until it ends, in the order in which it is to end.
    """

    def __init__(
        self,
        mlflow_run: MLflowRun | None,
        record: RunRecord,
        console: Console,
        beside: Sequence[SystemMetrics | OtherLoggers] = (),
    ) -> None:
        self.mlflow_run, self.record, self.console, self.beside = mlflow_run, record, console, beside

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

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Rows as a table that MLflow's pages show, beside those that are there."""
        if self.mlflow_run is not None:
            self.mlflow_run.log_table(rows, name)

    def log_file(self, file: Path, folder: str | None = None) -> None:
        """A file as an artifact."""
        if self.mlflow_run is not None:
            self.mlflow_run.log_file(file, folder)

    def set_tag(self, name: str, value: str) -> None:
        """A tag of the run."""
        if self.mlflow_run is not None:
            self.mlflow_run.set_tag(name, value)

    def log_rows(self, config: DataConfig, contents: Identity) -> None:
        """The rows that are trained on and those that are held out, as inputs."""
        if self.mlflow_run is not None:
            trained, held_out = contents[TRAINING_ROWS], contents[HELD_OUT_ROWS]
            self.mlflow_run.log_input(training_rows(config, trained.digest, len(trained.labels)))
            self.mlflow_run.log_input(held_out_rows(config, held_out.digest, len(held_out.labels)))

    def log_model(self, loaded: LoadedConfig) -> None:
        """The final model, once all is measured."""
        if self.mlflow_run is not None:
            _log_model(self.mlflow_run, loaded, self.record)

    def describe(self, result: FitResult) -> None:
        """The run's description, with its results, its plan and how its model is loaded, once all is measured."""
        if self.mlflow_run is not None:
            about = self.mlflow_run.tag_value(tags.NOTE) or ""
            self.mlflow_run.set_tag(tags.NOTE, finished_note(about, result, self.record.manifest.plan))

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
        for one in self.beside:
            one.finish()
        self.beside = ()
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
    mlflow_run = _opened(loaded, record, console)
    tracking = FitTracking(mlflow_run, record, console)
    try:
        if mlflow_run is not None:
            tracking.beside = _started(loaded, record, mlflow_run, console)
            manifest = record.manifest
            provenance = Provenance(plain_config(loaded), identity=manifest.identity).write(
                record.folder, step=manifest.step_offset
            )
            mlflow_run.log_params(set_params(loaded))
            mlflow_run.log_text(loaded.to_yaml(), CONFIG_FILE)
            mlflow_run.log_file(provenance)
        yield tracking
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt | Preempted) else "FAILED"
        # neither a second signal nor a full disk may hide why the fit ends
        with preemption.deferred(), suppress(OSError):
            tracking.end(status)
        raise


def deliver_rest(loaded: LoadedConfig, record: RunRecord, console: Console) -> None:
    """Send MLflow what a finished fit could not, or all of it where its run has been deleted; of rank 0.

    Where its model is described otherwise than it was (a folder that was moved, a name to register it as), or was not
    by a former version, that goes with it.
    """
    tell, manifest, tracking = printer(console), record.manifest, loaded.config.tracking

    if is_lost(tracking, record.folder, manifest.mlflow_run_id):
        tell(f"its MLflow run {manifest.mlflow_run_id} is deleted; what it had is sent again, as a new run.")
        parent = {} if tracking.parent_run is None else {tags.PARENT: tracking.parent_run}
        manifest.mlflow_run_id = send_again(tracking, record.folder, tags=parent, tell=tell)
        manifest.write(record.folder)
        return
    owner = journal_owner(record.folder)
    if owner is None:
        return
    with reopened(
        tracking,
        record.folder,
        name=owner["name"],
        fit_id=owner["fit_id"],
        run_id=manifest.mlflow_run_id,
        tell=tell,
    ) as run:
        if not manifest.changes(plain_config(loaded)):  # else that is not what was fitted
            _log_model(run, loaded, record)
    if run.pending:
        kept = f"they are kept in {run.journal_folder}"
        tell(f"{run.pending} entries are not in MLflow yet, as it does not answer; {kept}.")


def _log_model(run: MLflowRun, loaded: LoadedConfig, record: RunRecord) -> None:
    run.log_metrics(final_figures(record.manifest, record.folder), record.manifest.step_offset)
    run.log_model(model_record(loaded, record.manifest, record.folder))


def printer(console: Console) -> Callable[[str], None]:
    """Print one line as it is."""
    return partial(console.print, highlight=False, markup=False, soft_wrap=True)


def _opened(loaded: LoadedConfig, record: RunRecord, console: Console) -> MLflowRun | None:
    if not record.cluster.is_main:
        return None
    manifest, config = record.manifest, loaded.config
    check_beside(config.tracking)
    run_tags = tags.describing(config, "fit", loaded.architecture.name)
    run_tags[tags.FOLDER] = str(record.folder.resolve())
    run_tags[tags.EXPERIMENT] = key_of(manifest.config)
    if manifest.plan:  # of a fit that goes on, or begins with what another point of a sweep has calibrated
        run_tags |= tags.of_plan(LayerPlan.from_dict(manifest.plan))
    if "cache" in record.result("prepare"):
        run_tags[tags.RETAINED] = tags.retained(manifest.result(record.folder, "").cache.retain_rate)
    if config.tracking.parent_run is not None:
        run_tags[tags.PARENT] = config.tracking.parent_run
    run_tags |= _teacher_tags(loaded)
    run = MLflowRun.open(
        config.tracking,
        name=config.name,
        fit_id=manifest.fit_id,
        run_id=manifest.mlflow_run_id,
        tags={**run_tags, tags.NOTE: _note(run_tags)},
        folder=record.folder,
        tell=printer(console),
    )
    manifest.mlflow_run_id = run.run_id
    manifest.write(record.folder)
    return run


def _teacher_tags(loaded: LoadedConfig) -> dict[str, str]:
    """What the fit is distilled from: its name, and its MLflow run where it is a run of this store."""
    teacher = loaded.config.training.distillation.teacher
    folder = teacher_folder(loaded)
    if teacher is None or folder is None:
        return {} if teacher is None else {tags.TEACHER: teacher}
    run_folder = folder.parent if folder.name == FINAL else folder
    manifest, named = Manifest.read(run_folder), {tags.TEACHER: run_name(folder)}
    run_id = None if manifest is None else continued_run(loaded.config.tracking, run_folder, manifest.mlflow_run_id)
    return named if run_id is None else {**named, tags.TEACHER_RUN: run_id}


def _note(run_tags: Mapping[str, str]) -> str:
    what = f"{run_tags[tags.ARCHITECTURE]} of {run_tags[tags.MODEL]}, fitted on {run_tags[tags.DATA]}."
    teacher = run_tags.get(tags.TEACHER)
    return fit_note(
        what,
        sweep=run_tags.get(tags.PARENT),
        teacher=None if teacher is None else linked(teacher, run_tags.get(tags.TEACHER_RUN)),
    )


def _started(
    loaded: LoadedConfig, record: RunRecord, run: MLflowRun, console: Console
) -> list[SystemMetrics | OtherLoggers]:
    """What measures and writes beside the run, as the config says: the loggers end last, as they are to have it all."""
    config, tell, beside = loaded.config.tracking, printer(console), list[SystemMetrics | OtherLoggers]()
    if config.system_metrics:
        beside.append(SystemMetrics(run, tell))
    if config.also:
        names = {"project": config.experiment, "name": loaded.config.name, "fit_id": record.manifest.fit_id}
        beside.append(OtherLoggers(config.also, record.folder, **names, tell=tell))
    for one in beside:
        one.start()
    return beside
