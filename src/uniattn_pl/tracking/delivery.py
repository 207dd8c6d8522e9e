"""Sends what a run has journaled to MLflow, in the background, however often the server goes away."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.config.schema import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.redaction import redact
from uniattn_pl.tracking import mlflow_store
from uniattn_pl.tracking.delivery_state import FILE, Progress
from uniattn_pl.tracking.journal import ARTIFACTS, Entry, Journal, entries

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

METRICS_PER_REQUEST, PARAMS_PER_REQUEST = 1000, 100
INTERVAL_S = 5.0  # what is journaled is in MLflow so much later at most, while the server answers
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
ANSWERING_S, ANSWER_S, SILENT_S = 30.0, 10.0, 5.0
REASON_LENGTH = 200


class ArtifactsNotStoredError(Exception):
    """The store answers, but the place where it keeps artifacts cannot be written to."""


class Delivery:
    """A daemon thread that delivers one journal, in order and every operation once.

    A batch of which nobody knows whether it arrived (a kill, a timeout) is compared with what the store has
    before it is sent again. While the store does not answer, the thread tries again after growing pauses.

    Args:
        config: the store.
        journal: what is delivered.
        fit_id: finds the run again when its id was never recorded.
        name: of the run, where it is created.
        run_id: the run recorded elsewhere; `delivered.json`, where there is one, knows better.
        tell: called with each line for people.
    """

    def __init__(
        self,
        config: TrackingConfig,
        journal: Journal,
        *,
        fit_id: str,
        name: str,
        run_id: str | None,
        tell: Callable[[str], None],
    ) -> None:
        self.config, self.journal, self.fit_id, self.name, self.tell = config, journal, fit_id, name, tell
        self._file = journal.folder / FILE
        self._progress = self._starting_point(run_id)
        self._done = journal.count_until(self._progress.offset)
        self._client: MlflowClient | None = None
        self._existing = True
        self._there: dict[str, set[int]] = {}
        self._condition = threading.Condition()
        self._attempts, self._answering, self._answered_at = 0, False, 0.0
        self._silence_told, self._artifacts_told = False, False
        self._hurry, self._stopped = False, False
        self.refused: UserError | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-delivery", daemon=True)

    def _starting_point(self, run_id: str | None) -> Progress:
        place = mlflow_store.place(self.config)
        progress = Progress.read(self._file)
        if progress is None:
            return Progress(place, run_id)
        moved_away = mlflow_store.is_local(self.config) and not mlflow_store.database(self.config).exists()
        if progress.place != place or moved_away:
            # written before the new database is made: a kill in between must not bring the old run's id back
            progress = Progress(place)
            progress.write(self._file)
        # a power cut can take from the journal what the store has; it is journaled again and then compared
        return replace(progress, offset=min(progress.offset, self.journal.size))

    @property
    def run_id(self) -> str | None:
        """The MLflow run, None until the store has answered once."""
        return self._progress.run_id

    @property
    def pending(self) -> int:
        """Journaled operations that are not delivered."""
        return self.journal.count - self._done + len(self._progress.held)

    def start(self, seconds: float | None) -> None:
        """Start delivering, and wait so long for the store's first answer (None: as long as it takes).

        Raises:
            UserError: the store answered, and what it was asked for is the user's mistake.
        """
        self._thread.start()
        with self._condition:
            self._condition.wait_for(lambda: self._answering or self._attempts > 0, seconds)
        if self.refused is not None:
            self.stop()
            raise self.refused
        if not self._answering:
            self._tell_silence(f"nothing in {seconds} s")

    def drain(self) -> bool:
        """Wait until all is delivered.

        `ANSWERING_S` at most; `ANSWER_S` for each answer of a store that has answered, `SILENT_S` for one that has not.
        """
        started = time.monotonic()
        with self._condition:
            self._hurry = True
            self._condition.notify_all()
            while self.pending:
                patience = ANSWER_S if self._answering else SILENT_S
                limit = min(started + ANSWERING_S, max(started, self._answered_at) + patience)
                if not self._condition.wait(max(0.0, limit - time.monotonic())):
                    break
        return self.pending == 0

    def stop(self) -> None:
        """End the thread; a request it is in the middle of is compared by whoever opens the journal next."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._thread.join(timeout=1.0)

    def _work(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopped:
            try:
                client = self._connected()
                self._deliver(client)
            except Exception as error:  # whatever fails in here must not end the fit
                self._failed(error)
                wait, pause = pause, min(2 * pause, LONGEST_PAUSE_S)
            else:
                wait, pause = INTERVAL_S, FIRST_PAUSE_S
            with self._condition:
                self._attempts += 1
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._hurry or self._stopped, wait)
                if self._hurry:
                    self._hurry, pause = False, FIRST_PAUSE_S

    def _connected(self) -> MlflowClient:
        if self._client is None:
            client = mlflow_store.connect(self.config)
            run_id, self._existing = mlflow_store.find_or_create_run(
                client, self.config, name=self.name, fit_id=self.fit_id, run_id=self.run_id
            )
            self._advance(run_id=run_id)
            self._client = client
            self._answered()
        return self._client

    def _deliver(self, client: MlflowClient) -> None:
        while not self._stopped and (batch := self._next_batch()):
            self._send(client, batch)
            self._advance(len(batch), offset=batch[-1].end)
            self._answered()
        for name in () if self._stopped else self._progress.held:
            if not self._uploaded(client, name):
                raise ArtifactsNotStoredError
            self._advance(held=[other for other in self._progress.held if other != name])

    def _next_batch(self) -> list[Entry]:
        """The next operations of one kind that fit into one request."""
        coming = entries(self.journal.path, self._progress.offset)
        first = next(coming, None)
        if first is None:
            return []
        kind = first.operation["op"]
        limit = {"metric": METRICS_PER_REQUEST, "param": PARAMS_PER_REQUEST}.get(kind, 1)
        return [first, *takewhile(lambda entry: entry.operation["op"] == kind, islice(coming, limit - 1))]

    def _advance(self, operations: int = 0, **changes: Any) -> None:
        with self._condition:
            if self._stopped:
                return
            self._done += operations
            self._answered_at = time.monotonic()
            self._progress = replace(self._progress, **changes)
            self._progress.write(self._file)
            self._condition.notify_all()

    def _send(self, client: MlflowClient, batch: list[Entry]) -> None:
        """Send operations of one kind; one the store refuses for good is told and left out, its neighbours sent."""
        operations = [entry.operation for entry in batch]
        try:
            self._request(client, operations)
        except Exception as error:
            self._doubt(operations)
            if not mlflow_store.is_invalid(error):
                raise
            self._require_active_run(client)
            if len(batch) > 1:
                for entry in batch:
                    self._send(client, [entry])
            else:
                self._say(
                    f"MLflow refuses {json.dumps(operations[0])} ({_reason(error)}); it stays in the journal only."
                )

    def _request(self, client: MlflowClient, operations: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric, Param

        run_id, first = str(self.run_id), operations[0]
        match first["op"]:
            case "metric":
                new = [o for o in operations if o["step"] not in self._steps_there(client, o["key"])]
                metrics = [Metric(o["key"], o["value"], o["timestamp"], o["step"]) for o in new]
                if metrics:
                    client.log_batch(run_id, metrics)
            case "param":
                have = client.get_run(run_id).data.params if self._existing else {}
                params = [Param(o["key"], o["value"]) for o in operations if o["key"] not in have]
                if params:
                    client.log_batch(run_id, params=params)
            case "tag":
                client.set_tag(run_id, first["key"], first["value"])
            case "artifact":
                if not self._uploaded(client, first["path"]):
                    self._advance(held=[*self._progress.held, first["path"]])
            case "status" if first["status"] == "RUNNING":
                client.update_run(run_id, status="RUNNING")
            case "status":
                client.set_terminated(run_id, first["status"], end_time=first["timestamp"])

    def _steps_there(self, client: MlflowClient, key: str) -> set[int]:
        """The steps of a metric that the store had when delivery began, or after a request of unknown outcome."""
        if key not in self._there:
            history = client.get_metric_history(str(self.run_id), key) if self._existing else []
            self._there[key] = {point.step for point in history}
        return self._there[key]

    def _doubt(self, operations: list[dict[str, Any]]) -> None:
        """Ask the store again what it has of these."""
        self._existing = True
        for operation in operations:
            self._there.pop(operation.get("key", ""), None)

    def _require_active_run(self, client: MlflowClient) -> None:
        """A deleted run refuses everything; then nothing may be left out, as it can be restored."""
        mlflow_store.find_or_create_run(client, self.config, name=self.name, fit_id=self.fit_id, run_id=self.run_id)

    def _uploaded(self, client: MlflowClient, name: str) -> bool:
        """Store an artifact; False when only artifacts cannot be, which must not hold up metrics.

        Artifacts may be kept elsewhere than metrics. Raises what the store raises when it does not answer either.
        """
        parent = str(Path(name).parent)
        file = self.journal.folder / ARTIFACTS / name
        try:
            client.log_artifact(str(self.run_id), str(file), None if parent == "." else parent)
        except Exception as error:
            client.get_run(str(self.run_id))
            if not self._artifacts_told:
                self._artifacts_told = True
                self._say(f"MLflow cannot store {name} ({_reason(error)}); it is kept in {file} and tried again.")
            return False
        return True

    def _answered(self) -> None:
        with self._condition:
            self._answering = True
            told, self._silence_told = self._silence_told, False
            self._condition.notify_all()
        if told:
            self._say(f"MLflow at {redact(self.config.uri)} answers again; what was kept is being delivered.")

    def _failed(self, error: Exception) -> None:
        with self._condition:
            self._answering = False
            if self._client is None and self._attempts == 0:
                self.refused = mlflow_store.refusal(error, self.config)
        if self.refused is None and not isinstance(error, ArtifactsNotStoredError):
            self._tell_silence(_reason(error))

    def _tell_silence(self, reason: str) -> None:
        with self._condition:
            if self._silence_told:
                return
            self._silence_told = True
        self._say(
            f"MLflow at {redact(self.config.uri)} does not answer ({reason}); "
            f"metrics are kept in {self.journal.folder} and delivered when it does."
        )

    def _say(self, line: str) -> None:
        with contextlib.suppress(Exception):  # a console that is closed ends neither the fit nor delivery
            self.tell(line)


def _reason(error: Exception) -> str:
    """What an exception goes back to, in one short line without credentials."""
    origin: BaseException = error
    while (before := origin.__cause__ or origin.__context__) is not None:
        origin = before
    line = " ".join(str(redact(str(origin))).split()) or type(origin).__name__
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 3] + "..."
