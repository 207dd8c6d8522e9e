"""The runs of one MLflow experiment, and which of them are a sweep's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import RunFailure, UserError, did_you_mean
from uniattn_pl.redaction import redact
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.tracking import mlflow_store, tags
from uniattn_pl.tracking.metric_names import spellings

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

PAGE = 1000
FINISHED = "FINISHED"


class RunStore:
    """Reads an experiment's runs; each kind, and each metric's history, once."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id
        self.of_kind = cache(self._of_kind)
        self.history = cache(self._history)

    def _of_kind(self, kind: str) -> list[Run]:
        """All runs of a kind (tracking/tags.py), the newest first."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], f"tags.`{tags.KIND}` = '{kind}'", max_results=PAGE, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return sorted(runs, key=_age, reverse=True)

    def _history(self, run_id: str, metric: str) -> dict[int, float]:
        """Step -> the value logged last at it, ascending."""
        points = self.client.get_metric_history(run_id, metric)
        return {point.step: point.value for point in sorted(points, key=lambda point: (point.step, point.timestamp))}

    def value(self, run: Run, metric: str, step: int | None) -> float | None:
        """The value at a step, by default at the last one; None where there is none."""
        name = spelled(run, metric)
        if name not in run.data.metrics or step is None:
            return run.data.metrics.get(name)
        return self.history(run.info.run_id, name).get(step)


def spelled(run: Run, metric: str) -> str:
    """What a run calls a metric; runs of former versions have other names for some."""
    return next((name for name in spellings(metric) if name in run.data.metrics), metric)


def open_store(config: TrackingConfig, filled_by: str) -> RunStore:
    """Connect to the store of a config, which is not made when it is not there.

    Args:
        filled_by: the command that makes the runs a report is about.

    Raises:
        UserError: there is no such store or experiment.
        RunFailure: it does not answer.
    """
    mlflow_store.check_uri(config.uri)
    uri = redact(config.uri)
    if mlflow_store.is_local(config) and not mlflow_store.database(config).exists():
        raise UserError(f"there is no MLflow store at tracking.uri '{uri}'; this makes it, with its runs: {filled_by}")
    client = mlflow_store.connect(config)
    try:
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is not None and experiment.lifecycle_stage == "active":
            return RunStore(client, experiment.experiment_id)
        names = [other.name for other in client.search_experiments()]
    except Exception as error:
        raise answer(error, config) from error
    if experiment is not None:
        raise UserError(mlflow_store.deleted_experiment(config, experiment.experiment_id))
    near = did_you_mean(config.experiment, names) or f" There are: {', '.join(names)}."
    raise UserError(
        f"tracking.experiment: '{config.experiment}' is not in '{uri}'.{near} This makes its runs: {filled_by}"
    )


def answer(error: Exception, config: TrackingConfig) -> Exception:
    """What to say of a store's error: the user's mistake, or that the store does not answer."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException | OSError):
        return error
    uri = redact(config.uri)
    return mlflow_store.refusal(error, config) or RunFailure(f"MLflow does not answer at tracking.uri '{uri}': {error}")


def sweep_run(runs: RunStore, name: str, points: Sequence[Point]) -> Run | None:
    """The sweep's own run: the newest of its name that has one of the points below it, else the newest."""
    names, keys = {point.name for point in points}, {point.key for point in points}
    fits = [run for run in runs.of_kind("fit") if run.info.run_name in names or _experiment(run) in keys]
    parents = {run.data.tags.get(tags.PARENT) for run in fits}
    named = [run for run in runs.of_kind("sweep") if run.info.run_name == name]
    return next((run for run in named if run.info.run_id in parents), named[0] if named else None)


def point_run(runs: RunStore, point: Point, parent: Run | None, base: LoadedConfig) -> Run | None:
    """A point's run: below the sweep's, or in its folder where MLflow did not answer when the sweep began.

    The point may have had another name then, as before its sweep had seeds.
    """
    root = PurePath(base.config.trainer.default_root_dir).name
    fits = [run for run in runs.of_kind("fit") if point.name == run.info.run_name or point.key == _experiment(run)]
    candidates = [run for run in fits if _belongs(run, parent, root) and not _is_another(run, point)]
    return max(
        candidates,
        key=lambda run: (_experiment(run) == point.key, _has_own_folder(run, point), *_finished(run)),
        default=None,
    )


def single_run(runs: RunStore, config: LoadedConfig) -> Run | None:
    """The run of a fit that is no sweep's."""
    experiment = config.config
    named = [run for run in runs.of_kind("fit") if run.info.run_name == experiment.name]
    return max(
        (r for r in named if r.data.tags.get(tags.PARENT) == experiment.tracking.parent_run),
        key=_finished,
        default=None,
    )


def _belongs(run: Run, parent: Run | None, root: str) -> bool:
    above = run.data.tags.get(tags.PARENT)
    if above is None:
        return _folder(run).parent.name == root
    return parent is not None and above == parent.info.run_id


def _is_another(run: Run, point: Point) -> bool:
    """Whether a former or later config of the point made the run: a sweep puts its key behind the folder's name."""
    keyed = re.fullmatch(rf"{re.escape(point.name)}\.[0-9a-f]{{8}}", _folder(run).name)
    return keyed is not None and not _has_own_folder(run, point)


def _has_own_folder(run: Run, point: Point) -> bool:
    return _folder(run).name == f"{point.name}.{point.key[:8]}"


def _experiment(run: Run) -> str | None:
    return run.data.tags.get(tags.EXPERIMENT)


def _folder(run: Run) -> Path:
    return Path(run.data.tags.get(tags.FOLDER, ""))


def _finished(run: Run) -> tuple[Any, ...]:
    return (run.info.status == FINISHED, *_age(run))


def _age(run: Run) -> tuple[int, str]:
    return run.info.start_time or 0, run.info.run_id
