"""One MLflow run per fit: opened once, continued after a kill, never with gaps or duplicates."""

from __future__ import annotations

import fcntl
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.config.schema import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.tracking.redaction import redact

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.tracking import MlflowClient

MAX_PARAM_LENGTH = 250  # the shortest limit of the stores MLflow has had; a longer value fails on some of them
PARAMS_PER_REQUEST = 100
METRICS_PER_REQUEST = 1000
FLUSH_INTERVAL_S = 5.0
FIT_TAG = "uniattn_pl.fit_id"
FOLDER_TAG = "uniattn_pl.run_folder"


class MLflowRun:
    """A thin writer for one run. Metrics are buffered and sent together, at most `FLUSH_INTERVAL_S` late.

    Each metric may only move forward in steps: what the store already has, from before a kill, is skipped.
    `flush` before every checkpoint guarantees that no step is lost either.
    """

    def __init__(self, client: MlflowClient, run_id: str, *, resumed: bool) -> None:
        self.client, self.run_id = client, run_id
        self._resumed = resumed
        self._last_step: dict[str, int] = {}
        self._buffer: list[tuple[str, float, int, int]] = []
        self._flushed_at = time.monotonic()

    @classmethod
    def open(
        cls, config: TrackingConfig, *, name: str, fit_id: str, run_id: str | None, tags: Mapping[str, str]
    ) -> MLflowRun:
        """Continue the fit's run, or create it.

        Args:
            config: store, experiment and artifact location.
            name: of the run, where it is created.
            fit_id: tagged on the run; finds it again after a kill that came before `run_id` was recorded.
            run_id: the run recorded in the manifest, if any.
            tags: set on the run, replacing earlier values.

        Raises:
            UserError: the store cannot be opened, or does not have the recorded run.
        """
        from mlflow.exceptions import MlflowException

        client = connect(config)
        try:
            experiment = _experiment(client, config)
            known = run_id or _find(client, experiment, fit_id)
            if known is None:
                created = client.create_run(experiment, run_name=name, tags={FIT_TAG: fit_id, **tags})
                return cls(client, created.info.run_id, resumed=False)
            client.update_run(known, status="RUNNING")
        except MlflowException as error:
            raise UserError(
                f"MLflow cannot open {'run ' + run_id if run_id else 'a run'} at tracking.uri "
                f"'{redact(config.uri)}': {error.message}. Give the store the run was started with, "
                "or start anew with another name=."
            ) from error
        for key, value in tags.items():
            client.set_tag(known, key, value)
        return cls(client, known, resumed=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Buffer metrics at `step`; a key's step that is not past its last one is already there and is skipped."""
        now = int(time.time() * 1000)
        for key, value in metrics.items():
            if step > self._last(key):
                self._last_step[key] = step
                self._buffer.append((key, float(value), now, step))
        if time.monotonic() - self._flushed_at > FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Send what is buffered; each request is one transaction of the store."""
        from mlflow.entities import Metric

        for start in range(0, len(self._buffer), METRICS_PER_REQUEST):
            part = self._buffer[start : start + METRICS_PER_REQUEST]
            self.client.log_batch(self.run_id, [Metric(*entry) for entry in part])
        self._buffer = []
        self._flushed_at = time.monotonic()

    def _last(self, key: str) -> int:
        if key not in self._last_step:
            history = self.client.get_metric_history(self.run_id, key) if self._resumed else []
            self._last_step[key] = max((point.step for point in history), default=-1)
        return self._last_step[key]

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters the run does not have yet (MLflow refuses to change one); long values are cut."""
        from mlflow.entities import Param

        have = self.client.get_run(self.run_id).data.params if self._resumed else {}
        missing = [Param(key, _cut(str(redact(value)))) for key, value in params.items() if key not in have]
        for start in range(0, len(missing), PARAMS_PER_REQUEST):
            self.client.log_batch(self.run_id, params=missing[start : start + PARAMS_PER_REQUEST])

    def set_tag(self, key: str, value: str) -> None:
        self.client.set_tag(self.run_id, key, value)

    def log_text(self, text: str, artifact: str) -> None:
        """Store `text` as an artifact, replacing an earlier one of that name."""
        self.client.log_text(self.run_id, text, artifact)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a file as an artifact under its own name."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def log_figure(self, figure: Figure, artifact: str) -> None:
        """Store a figure as a PNG, without touching pyplot's global state."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(artifact).name
            figure.savefig(path, dpi=120, bbox_inches="tight")
            parent = str(Path(artifact).parent)
            self.log_file(path, None if parent == "." else parent)

    def history(self, key: str) -> list[tuple[int, float]]:
        """The (step, value) points of a metric, in order of steps."""
        self.flush()
        return sorted((point.step, point.value) for point in self.client.get_metric_history(self.run_id, key))

    def end(self, status: str) -> None:
        """Flush and mark the run FINISHED, FAILED or KILLED."""
        self.flush()
        self.client.set_terminated(self.run_id, status)


def connect(config: TrackingConfig) -> MlflowClient:
    """Return a client, creating an sqlite database exactly once even when several fits start together.

    Raises:
        UserError: the URI names a plain folder, which MLflow no longer writes to.
    """
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it narrates the making of tables
    logging.getLogger("alembic").setLevel(logging.WARNING)
    scheme = config.uri.split(":", 1)[0] if ":" in config.uri else ""
    if scheme in ("", "file"):
        raise UserError(
            f"tracking.uri is the folder '{config.uri}', which MLflow 3 no longer writes to; "
            "use a database such as sqlite:///mlruns/mlflow.db, or a server's http(s) address."
        )
    if scheme != "sqlite":
        return MlflowClient(config.uri)
    database = Path(config.uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with _locked(database.with_name(database.name + ".lock")):
        client = MlflowClient(config.uri)
        client.search_experiments(max_results=1)  # creates the tables
    return client


def _experiment(client: MlflowClient, config: TrackingConfig) -> str:
    """The experiment's id; a new one keeps its artifacts where the config says."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(config.experiment)
    if found is None:
        local = config.uri.startswith("sqlite:") and config.artifact_location is not None
        location = Path(str(config.artifact_location)).resolve().as_uri() if local else None
        try:
            return str(client.create_experiment(config.experiment, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(config.experiment)  # another fit was faster
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow experiment '{config.experiment}' is deleted; "
            "restore it with 'mlflow experiments restore', or set another tracking.experiment."
        )
    return str(found.experiment_id)


def _find(client: MlflowClient, experiment: str, fit_id: str) -> str | None:
    runs = client.search_runs([experiment], f"tags.`{FIT_TAG}` = '{fit_id}'", max_results=1)
    return runs[0].info.run_id if runs else None


def _cut(value: str) -> str:
    return value if len(value) <= MAX_PARAM_LENGTH else value[: MAX_PARAM_LENGTH - 3] + "..."


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
