"""The ledger of a sweep: which worker does which job. It is an Optuna study that workers on all machines use.

Every attempt at a job, which has a key, is a trial. A worker claims a waiting trial (WAITING becomes RUNNING
in one step of the database) and holds a lock in the sweep's folder while it works. The claim of a dead worker is
freed: on the machine it ran on because nobody holds the lock any more, elsewhere because its heartbeat has stopped. A
trial that failed without an `error` was lost, not tried, and does not count.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
import uuid
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from uniattn_pl.errors import RunFailure, UserError
from uniattn_pl.redaction import redact
from uniattn_pl.sweeps.locks import locked, try_lock
from uniattn_pl.sweeps.point_state import AGAIN, ANEW, ERROR, PLACE, RESULT, PointState, state_of
from uniattn_pl.sweeps.sweep_folder import SweepFolder

HEARTBEAT_S, GRACE_S = 15, 120
SQLITE_PATIENCE_S = 60
OPENINGS = 5
KEY, SWEEP_ID = "point", "sweep_id"
LedgerSilentError = StorageInternalError  # the database does not answer now


@dataclass(frozen=True)
class Claim:
    """The right of this process to work on a point; `lock` is the descriptor that proves it is alive."""

    key: str
    trial_id: int
    lock: int


class Ledger:
    """The trials of one sweep.

    Args:
        url: SQLAlchemy URL of the database; None: an sqlite file in the sweep's folder.
        name: of the study; workers that name the same study of a database divide its points.
        folder: of the sweep.
        retries: attempts after the first one that failed.
        prune_after: finished points before one may be pruned; None: pruned points count as not run.

    Raises:
        UserError: the URL is not a database's, or its driver is missing.
        RunFailure: the database does not answer.
    """

    def __init__(self, url: str | None, name: str, folder: SweepFolder, *, retries: int, prune_after: int | None):
        self.folder, self.retries, self.prune_after = folder, retries, prune_after
        self.url = url or f"sqlite:///{folder.bookkeeping.absolute() / 'ledger.db'}"
        self._place = f"{socket.gethostname()}:{folder.root.resolve()}"
        logging.getLogger("alembic").setLevel(logging.WARNING)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", ExperimentalWarning)
        with locked(folder.lock):  # two processes that make the tables at once crash
            self._storage = self._open()
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, direction="minimize", load_if_exists=True
            )
        with self.alone():
            if SWEEP_ID not in self._study.user_attrs:
                self._study.set_user_attr(SWEEP_ID, uuid.uuid4().hex)

    def _open(self) -> optuna.storages.RDBStorage:
        try:
            return self._with_tables(OPENINGS)
        except (ArgumentError, ImportError, ValueError) as error:
            # Optuna says that a driver is missing, its cause which one
            raise UserError(
                f"sweep.storage '{redact(self.url)}' cannot be used ({in_a_line(error.__cause__ or error)}); give an "
                "SQLAlchemy URL such as postgresql+psycopg://user@host/database, and install its driver."
            ) from error
        except (SQLAlchemyError, StorageInternalError) as error:
            raise RunFailure(f"the ledger at {redact(self.url)} does not answer: {in_a_line(error)}") from error

    def _with_tables(self, openings: int) -> optuna.storages.RDBStorage:
        # a server that was started again has closed its connections: they are tried before they are used
        options = {"connect_args": {"timeout": SQLITE_PATIENCE_S}} if self._is_file else {"pool_pre_ping": True}
        try:
            return optuna.storages.RDBStorage(
                self.url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S
            )
        except (IntegrityError, ProgrammingError):  # a worker elsewhere has made the same table at the same time
            if openings == 1:
                raise
            time.sleep(random.random())
            return self._with_tables(openings - 1)

    @property
    def _is_file(self) -> bool:
        return self.url.startswith("sqlite")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all other workers of the sweep out of such blocks.

        Those on this machine by a lock, those elsewhere by a row that Optuna itself does not lock.
        """
        with locked(self.folder.lock):
            if self._is_file:
                yield
                return
            try:
                with self._storage.engine.begin() as connection:
                    connection.execute(text("SELECT version_info_id FROM version_info FOR UPDATE"))
                    yield
            except SQLAlchemyError as error:
                raise LedgerSilentError(str(error)) from error

    @property
    def sweep_id(self) -> str:
        """The same for all workers, wherever they are."""
        return str(self._study.user_attrs[SWEEP_ID])

    def states(self, keys: Iterable[str]) -> dict[str, PointState]:
        """The state of each point."""
        trials = self._trials()
        return {key: self._state_of(trials[key]) for key in keys}

    def enqueue(self, keys: Iterable[str], *, again: bool = False) -> None:
        """Add a trial for each point that is to be run and has none waiting or running: new, lost or failed ones.

        Args:
            again: also for those that were given up; they have all their attempts anew.
        """
        keys = list(keys)
        if not self._due(keys, again=again):
            return
        with self.alone():  # a point with two trials might be run twice
            for key, given_up in self._due(keys, again=again):
                self._study.enqueue_trial({}, user_attrs={KEY: key, **({AGAIN: True} if given_up else {})})

    def renew(self, keys: Iterable[str]) -> None:
        """Run finished jobs again, because what they made is lost."""
        keys = list(keys)
        if not keys:
            return
        with self.alone():
            for key, state in self.states(keys).items():
                if state.state == "finished":  # else another worker has seen it, too
                    self._study.enqueue_trial({}, user_attrs={KEY: key, ANEW: True})

    def _due(self, keys: list[str], *, again: bool) -> list[tuple[str, bool]]:
        trials, due = self._trials(), []
        for key in keys:
            state = self._state_of(trials[key])
            if state.state == "failed" and (again or not self.given_up(state)):
                due.append((key, self.given_up(state)))
        return due

    def given_up(self, state: PointState) -> bool:
        """Whether a point has had all its attempts."""
        return state.failures > self.retries

    def claim(self, keys: Iterable[str]) -> Claim | None:
        """Claim the first of `keys` that waits, new ones before those that failed; None when there is none."""
        trials = self._trials()
        states = {one: self._state_of(trials[one]) for one in keys}
        waiting = [one for one, state in states.items() if state.state == "waiting"]
        waiting.sort(key=lambda one: states[one].failures)
        for key, trial in ((one, trial) for one in waiting for trial in trials[one]):
            lock = try_lock(self.folder.claim(key)) if trial.state is TrialState.WAITING else None
            if lock is None:
                continue
            try:
                if self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    self._storage.set_trial_user_attr(trial._trial_id, PLACE, self._place)
                    claim = Claim(key, trial._trial_id, lock)
                    self.beat(claim)
                    return claim
            except UpdateFinishedTrialError:
                pass  # another worker was faster, and is through
            os.close(lock)
        return None

    def beat(self, claim: Claim) -> None:
        """Tell workers elsewhere that this one is alive."""
        self._storage.record_heartbeat(claim.trial_id)

    def report(self, claim: Claim, step: int, loss: float) -> bool:
        """Record a point's held-out loss on its way; returns whether it is to be pruned.

        It is when its loss now is above the median of the finished points' at that step. (Optuna's own median pruner
        compares the best of all steps so far, which every stage 1 begins with.)
        """
        if step not in self._storage.get_trial(claim.trial_id).intermediate_values:
            self._storage.set_trial_intermediate_value(claim.trial_id, step, loss)
        if self.prune_after is None:
            return False
        finished = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [t.intermediate_values[step] for t in finished if step in t.intermediate_values]
        return len(others) >= self.prune_after and loss > median(others)

    def finish(self, claim: Claim, loss: float, **result: int | float | str | None) -> None:
        """Record a result, and what workers elsewhere show and check of it: `step`, `kv_rate`, `rows`."""
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(claim.trial_id, RESULT, result)
        self._end(claim, TrialState.COMPLETE, [loss])

    def prune(self, claim: Claim) -> None:
        self._end(claim, TrialState.PRUNED)

    def fail(self, claim: Claim, error: str) -> None:
        """Record an attempt that counts."""
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(claim.trial_id, ERROR, redact(error))
        self.release(claim)

    def release(self, claim: Claim) -> None:
        """Give a point back: unless an error was recorded before, nothing was tried."""
        self._end(claim, TrialState.FAIL)

    def _end(self, claim: Claim, state: TrialState, values: list[float] | None = None) -> None:
        try:
            self._storage.set_trial_state_values(claim.trial_id, state, values)
        except UpdateFinishedTrialError:
            pass  # this machine slept and another worker has freed the claim; the point's folder keeps what was done
        finally:
            os.close(claim.lock)

    def free_dead(self) -> None:
        """Free the claims of workers that are gone."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            place = trial.user_attrs.get(PLACE)
            if place == self._place:
                self._free_if_unlocked(trial)
            elif place is None and _older(trial, GRACE_S):
                self._lose(trial)
        optuna.storages.fail_stale_trials(self._study)

    def _free_if_unlocked(self, trial: FrozenTrial) -> None:
        lock = try_lock(self.folder.claim(trial.user_attrs[KEY]))
        if lock is not None:
            self._lose(trial)
            os.close(lock)

    def _lose(self, trial: FrozenTrial) -> None:
        with suppress(UpdateFinishedTrialError):  # it has just ended, or another worker has freed it
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _trials(self) -> dict[str, list[FrozenTrial]]:
        by_key: dict[str, list[FrozenTrial]] = defaultdict(list)
        for trial in self._study.get_trials(deepcopy=False):
            by_key[trial.user_attrs[KEY]].append(trial)
        return by_key

    def _state_of(self, trials: list[FrozenTrial]) -> PointState:
        return state_of(trials, place=self._place, pruning=self.prune_after is not None)


def in_a_line(error: BaseException) -> str:
    """Return the message of a database or its driver, in a line and without SQLAlchemy's hints."""
    message = str(getattr(error, "orig", None) or error.__cause__ or error)
    return str(redact(" ".join(message.split())))


def _older(trial: FrozenTrial, seconds: float) -> bool:
    return trial.datetime_start is not None and datetime.now() - trial.datetime_start > timedelta(seconds=seconds)
