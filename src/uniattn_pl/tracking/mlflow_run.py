"""One MLflow run per fit: continued after a kill, never with gaps or duplicates, never waiting for a server."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.display.figure_style import images
from uniattn_pl.errors import UserError
from uniattn_pl.redaction import redact
from uniattn_pl.tracking import mlflow_store
from uniattn_pl.tracking.data_inputs import DataInput
from uniattn_pl.tracking.delivery import Delivery
from uniattn_pl.tracking.journal import Journal, journal_owner
from uniattn_pl.tracking.logged_model import ModelRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLES = "mlflow.loggedArtifacts"  # MLflow's tag: which artifacts are tables
MAX_PARAM_LENGTH = 250  # the shortest limit of the stores MLflow has had; a longer value fails on some of them
FIRST_ANSWER_S = 4.0


class MLflowRun:
    """A writer for one run: everything is journaled in the run folder, and a thread delivers it from there.

    No call but `open` on a local store and `end` waits for MLflow. Each metric may only move forward in steps:
    what is journaled, from before a kill, is skipped. `flush` before every checkpoint guarantees that no step
    is lost either.
    """

    def __init__(self, journal: Journal, delivery: Delivery) -> None:
        self._journal, self._delivery = journal, delivery

    @classmethod
    def open(
        cls,
        config: TrackingConfig,
        *,
        name: str,
        fit_id: str,
        run_id: str | None,
        tags: Mapping[str, str],
        folder: Path,
        tell: Callable[[str], None] = print,
    ) -> MLflowRun:
        """Continue the fit's run, or create it; a server that does not answer is told in a line and waited for later.

        Args:
            config: store, experiment and artifact location.
            name: of the run, where it is created.
            fit_id: tagged on the run; finds it again after a kill that came before `run_id` was recorded.
            run_id: the run recorded in the manifest, if any.
            tags: set on the run, replacing earlier values.
            folder: the run folder; the journal is in its `tracking/`.
            tell: called with each line for people, also from the thread.

        Raises:
            UserError: the URI is not a store's, the sqlite file is damaged, or the store lacks the recorded run.
        """
        journal, delivery = _opened(config, fit_id, name, run_id, folder, tell)
        _start(journal, delivery)
        if journal.resumed:
            journal.status("RUNNING")
        run = cls(journal, delivery)
        for key, value in tags.items():
            run.set_tag(key, value)
        return run

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, None until the store has answered once."""
        return self._delivery.run_id

    @property
    def pending(self) -> int:
        """Operations that are journaled and not delivered."""
        return self._delivery.pending

    @property
    def journal_folder(self) -> Path:
        """Where everything logged is kept."""
        return self._journal.folder

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at `step`; a key's step that is not past its last one is already there and is skipped."""
        self._journal.metrics(metrics, step)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters the run does not have yet (MLflow refuses to change one); long values are cut."""
        self._journal.params({key: _cut(str(redact(value))) for key, value in params.items()})

    def log_model_metrics(self, metrics: Mapping[str, float], step: int, rows: DataInput | None) -> None:
        """Record metrics of the run's logged model, where it has one, measured on these rows."""
        about = {} if rows is None else {"data": list(rows.key)}
        self._journal.metrics(metrics, step, of_model=True, **about)

    def log_input(self, data: DataInput) -> None:
        """Record rows that the run has read, once."""
        self._journal.input(data.to_dict())

    def log_model(self, record: ModelRecord) -> None:
        """Record the model that the run has made, or where it is now, with its last metrics."""
        self._journal.model(record.to_dict(self._journal.last_points()))

    def set_tag(self, key: str, value: str) -> None:
        self._journal.tag(key, value)

    def tag_value(self, key: str) -> str | None:
        """A tag as it was set last."""
        return self._journal.tag_value(key)

    def log_text(self, text: str, artifact: str) -> None:
        """Store `text`, without credentials, as an artifact, replacing an earlier one of that name."""
        self._journal.artifact(artifact, str(redact(text)).encode())

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a small file as an artifact under its own name, in `folder` of the artifacts."""
        self._journal.artifact(str(Path(folder or "", path.name)), path.read_bytes())

    def log_table(self, rows: Sequence[Mapping[str, Any]], artifact: str) -> None:
        """Store rows as a table that MLflow's pages show and `mlflow.load_table` reads, replacing an earlier one.

        Args:
            rows: each with its values by column; a value that one lacks is null.
            artifact: a .json file.
        """
        columns = list(dict.fromkeys(column for row in rows for column in row))
        table = {"columns": columns, "data": [[_cell(row.get(column)) for column in columns] for row in rows]}
        self.log_text(json.dumps(table), artifact)
        listed = json.loads(self._journal.tag_value(TABLES) or "[]")
        if (entry := {"path": artifact, "type": "table"}) not in listed:
            self.set_tag(TABLES, json.dumps([*listed, entry]))

    def log_figure(self, figure: Figure, artifact: str) -> None:
        """Store a figure as `artifact`.png and .svg."""
        for name, content in images(figure, artifact).items():
            self._journal.artifact(name, content)

    def history(self, key: str) -> list[tuple[int, float]]:
        """The (step, value) points of a metric, in order of steps."""
        return self._journal.history(key)

    def next_step(self, prefix: str) -> int:
        """The step behind the last one of the metrics whose keys begin so."""
        return self._journal.next_step(prefix)

    def flush(self) -> None:
        """Make everything logged so far survive a power cut; delivery is not waited for."""
        self._journal.sync()

    def drain(self) -> bool:
        """Wait until everything is delivered, seconds at most; returns whether it is."""
        return self._delivery.drain()

    def end(self, status: str) -> bool:
        """Mark the run FINISHED, FAILED or KILLED, and wait for delivery, half a minute at most.

        Returns:
            Whether everything was delivered; what was not is kept (`pending`, `leftover`).
        """
        self._journal.status(status)
        return _finish(self._journal, self._delivery)

    def leftover(self) -> str:
        """How much is not delivered and where it is, in words."""
        return (
            f"{self.pending} entries of this run are not in MLflow yet, as it does not answer; "
            f"they are kept in {self._journal.folder}"
        )


@contextmanager
def reopened(
    config: TrackingConfig,
    folder: Path,
    *,
    name: str,
    fit_id: str,
    run_id: str | None,
    tell: Callable[[str], None] = print,
    deliver: bool = True,
) -> Iterator[MLflowRun]:
    """Yield a run that has ended, to log more to it: its status and its end stay as they are.

    What is journaled and not in MLflow is delivered as the block ends, half a minute at most; see `pending`.

    Args:
        deliver: False: only journal, for a later delivery; of a store that is known not to answer.

    Raises:
        UserError: as `MLflowRun.open`, as the block ends.
    """
    journal, delivery = _opened(config, fit_id, name, run_id, folder, tell)
    journal.follow_model()
    if not journal.resumed:  # its journal is gone, and maybe its run with it
        journal.status("FINISHED")
    try:
        yield MLflowRun(journal, delivery)
    except BaseException:
        journal.close()
        raise
    if delivery.pending and deliver:
        _start(journal, delivery)
        _finish(journal, delivery)
    else:
        journal.close()


def deliver_pending(
    config: TrackingConfig, folder: Path, *, run_id: str | None = None, tell: Callable[[str], None] = print
) -> int:
    """Deliver what an earlier process left in a run folder's journal; returns how many operations are still left.

    Raises:
        UserError: as `MLflowRun.open`.
    """
    owner = journal_owner(folder)
    if owner is None:
        return 0
    with reopened(config, folder, name=owner["name"], fit_id=owner["fit_id"], run_id=run_id, tell=tell) as run:
        pass
    return run.pending


def _opened(
    config: TrackingConfig, fit_id: str, name: str, run_id: str | None, folder: Path, tell: Callable[[str], None]
) -> tuple[Journal, Delivery]:
    mlflow_store.check_uri(config.uri)
    journal = Journal(folder, fit_id=fit_id, name=name)
    return journal, Delivery(config, journal, fit_id=fit_id, name=name, run_id=run_id, tell=tell)


def _start(journal: Journal, delivery: Delivery) -> None:
    """Begin to deliver; a damaged database is told together with where the journal is."""
    try:
        delivery.start(None if mlflow_store.is_local(delivery.config) else FIRST_ANSWER_S)
    except mlflow_store.DamagedDatabaseError as error:
        journal.close()
        raise UserError(
            *error.problems,
            f"What this run has logged is in {journal.folder}; "
            "once the file is moved away, the same command delivers all of it into the new database.",
        ) from error
    except UserError:
        journal.close()
        raise


def _finish(journal: Journal, delivery: Delivery) -> bool:
    """Wait for delivery and end it."""
    journal.sync()
    delivered = delivery.drain()
    delivery.stop()
    journal.close()
    return delivered


def _cell(value: Any) -> Any:
    """A value of a table; JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cut(value: str) -> str:
    return value if len(value) <= MAX_PARAM_LENGTH else value[: MAX_PARAM_LENGTH - 3] + "..."
