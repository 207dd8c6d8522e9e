"""The state of a point's fit or evaluation, from the trials that the ledger has of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

PLACE, ERROR, AGAIN, ANEW, RESULT = "place", "error", "again", "anew", "result"  # attributes of a trial


@dataclass(frozen=True)
class PointState:
    """The state of a job: waiting, running, finished, pruned or failed.

    Attributes:
        loss: final held-out response loss of a finished point.
        error: of its last attempt that failed.
        failures: attempts that failed since it was last given up.
        place: machine and folder of the sweep where a finished point was done, None when that is here.
        step: the last one of a finished fit.
        kv_rate: KV retain rate of a finished point.
        rows: digest of the rows a finished point was fitted on.
    """

    state: str
    loss: float | None = None
    error: str | None = None
    failures: int = 0
    place: str | None = None
    step: int | None = None
    kv_rate: float | None = None
    rows: str | None = None


def state_of(trials: Sequence[FrozenTrial], *, place: str, pruning: bool) -> PointState:
    """Return the state that follows from all attempts.

    Args:
        trials: in the order they were made; one that begins anew makes nothing of those before it.
        place: of this process; what was finished elsewhere says where.
        pruning: whether a pruned point counts as done; otherwise it is as if it had not been run.
    """
    begins = max((index for index, trial in enumerate(trials) if trial.user_attrs.get(ANEW)), default=0)
    trials = trials[begins:]
    by_state: dict[TrialState, Any] = {trial.state: trial for trial in trials}
    if TrialState.COMPLETE in by_state:
        done = by_state[TrialState.COMPLETE]
        place_done = done.user_attrs.get(PLACE)
        elsewhere = None if place_done == place else place_done
        return PointState("finished", loss=done.value, place=elsewhere, **done.user_attrs.get(RESULT, {}))
    if TrialState.PRUNED in by_state and pruning:
        return PointState("pruned")
    failures, error = 0, None
    for trial in trials:
        failures = 0 if trial.user_attrs.get(AGAIN) else failures
        if trial.state is TrialState.FAIL and ERROR in trial.user_attrs:
            failures, error = failures + 1, trial.user_attrs[ERROR]
    live = (TrialState.RUNNING, "running"), (TrialState.WAITING, "waiting")
    state = next((name for kind, name in live if kind in by_state), "failed")
    return PointState(state, error=error, failures=failures)
