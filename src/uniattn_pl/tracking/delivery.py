"""Delivers what a run has journaled to MLflow in the background, however often the server goes away."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, takewhile
from typing import Any

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.redaction import redact
from uniattn_pl.tracking import mlflow_store
from uniattn_pl.tracking.delivery_state import FILE, DeliveryState
from uniattn_pl.tracking.journal import ARTIFACTS, Journal, JournalEntry, entries
from uniattn_pl.tracking.mlflow_requests import RunRequests, short_reason
from uniattn_pl.tracking.model_registry import check_registry

METRICS_PER_REQUEST, PARAMS_PER_REQUEST = 1000, 100
INTERVAL_S = 5.0  # what is journaled is in MLflow so much later at most, while the server answers
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
ANSWERING_S, ANSWER_S, SILENT_S = 30.0, 10.0, 5.0


class NotStoredError(Exception):
    """The store answers, but the place where it keeps artifacts, inputs or models cannot be written to."""


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
        self._former_place: str | None = None  # the store that had this run before, until it is told
        self._progress = self._starting_point(run_id)
        self._done = journal.count_until(self._progress.offset)
        self._requests: RunRequests | None = None
        self._condition = threading.Condition()
        self._attempts, self._answering, self._answered_at = 0, False, 0.0
        self._silence_told = False
        self._hurry, self._stopped = False, False
        self.refused: UserError | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-delivery", daemon=True)

    def _starting_point(self, run_id: str | None) -> DeliveryState:
        place = mlflow_store.place(self.config)
        progress = DeliveryState.read(self._file)
        if progress is None:
            return DeliveryState(place, run_id)
        moved_away = mlflow_store.is_local(self.config) and not mlflow_store.database(self.config).exists()
        if progress.place != place or moved_away:
            self._former_place = None if progress.place == place else progress.place
            # written before the new database is made: a kill in between must not bring the old run's id back
            progress = DeliveryState(place)
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
        """Wait until all is delivered; returns whether it is.

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
        """End the thread; whoever opens the journal next compares a request that is under way with the store."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._thread.join(timeout=1.0)

    def _work(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopped:
            try:
                self._deliver(self._connected())
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

    def _connected(self) -> RunRequests:
        if self._requests is None:
            client = mlflow_store.connect(self.config)
            if self._attempts == 0:  # later it ends no fit: the model is then told to be refused
                check_registry(client, self.config)

            def find_run() -> tuple[str, bool]:
                return mlflow_store.find_or_create_run(
                    client, self.config, name=self.name, fit_id=self.fit_id, run_id=self.run_id
                )

            run_id, existing = find_run()
            self._advance(run_id=run_id)
            if self._former_place is not None:
                self._tell_place(continued=existing)
            artifacts = self.journal.folder / ARTIFACTS
            self._requests = RunRequests(
                client, run_id, existing=existing, artifacts=artifacts, require_active=find_run, tell=self._say
            )
            self._answered()
        return self._requests

    def _tell_place(self, *, continued: bool) -> None:
        here = f"at {redact(self.config.uri)} {'its run goes on' if continued else 'it is a new run, with all of it'}"
        self._say(f"MLflow: what this run has logged was kept at {self._former_place}; {here}.")
        self._former_place = None

    def _deliver(self, requests: RunRequests) -> None:
        while not self._stopped and (batch := self._next_batch()):
            not_stored = requests.send([entry.operation for entry in batch])
            self._advance(len(batch), offset=batch[-1].end, held=[*self._progress.held, *not_stored])
            self._answered()
        for held in () if self._stopped else self._progress.held:
            if not requests.store(held):
                raise NotStoredError
            self._advance(held=[other for other in self._progress.held if other != held])

    def _next_batch(self) -> list[JournalEntry]:
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

    def _answered(self) -> None:
        with self._condition:
            self._answering = True
            was_silent, self._silence_told = self._silence_told, False
            self._condition.notify_all()
        if was_silent:
            self._say(f"MLflow at {redact(self.config.uri)} answers again; what was kept is being delivered.")

    def _failed(self, error: Exception) -> None:
        with self._condition:
            self._answering = False
            if self._requests is None and self._attempts == 0:
                self.refused = mlflow_store.refusal(error, self.config)
        if self.refused is None and not isinstance(error, NotStoredError):
            self._tell_silence(short_reason(error))

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
