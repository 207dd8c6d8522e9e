"""The command that has SLURM start a sweep's workers, and shows the ledger while they work."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from uniattn_pl.config import LoadedConfig
from uniattn_pl.errors import RunFailure
from uniattn_pl.redaction import redact
from uniattn_pl.resilience.preemption import Preempted, Preemption
from uniattn_pl.sweeps import slurm_jobs
from uniattn_pl.sweeps.jobs import joined
from uniattn_pl.sweeps.ledger import LedgerSilentError, in_a_line
from uniattn_pl.sweeps.point_state import PointState
from uniattn_pl.sweeps.shared_sweep import SharedSweep
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.sweeps.view import final_table, next_commands

LOOK_S = 10.0
LOOKS_PER_QUEUE = 3  # the queue is the whole cluster's
DONE = ("finished", "pruned")


class LeftRunning(RunFailure):
    """The submitting command was told to end; the jobs go on."""

    def __init__(self, exit_code: int, jobs: Sequence[str]) -> None:
        self.exit_code = exit_code
        cancel = f" Cancel them with: {slurm_jobs.cancelling(jobs)}" if jobs else ""
        super().__init__(
            f"this command ends, the sweep's jobs go on ({len(jobs)}); --workers 0 shows them again.{cancel}"
        )


def run_on_slurm(
    base: LoadedConfig,
    points: Sequence[Point],
    rates: Mapping[str, float | None],
    words: Sequence[str],
    *,
    wait: bool,
) -> None:
    """Submit a sweep's workers, then wait until all points have ended or no job of the sweep is left.

    Args:
        base, points, rates: as of `run_sweep`.
        words: of the `sweep` command that the workers run.
        wait: show what becomes of the points; otherwise say what was submitted and return.

    Raises:
        UserError: SLURM or submitit is not here, or the sweep's folder or ledger cannot be used.
        RunFailure: SLURM or the ledger refuses, points failed, or no job is left to do them.
        LeftRunning: Ctrl-C, or a signal that asks to end.
    """
    slurm_jobs.check_slurm(words)
    try:
        _SlurmSweep(SharedSweep(base, points, rates), words).run(wait=wait)
    except LedgerSilentError as error:
        raise RunFailure(f"the ledger of the sweep does not answer: {in_a_line(error)}") from error


def jobs_name(name: str, sweep_id: str = "") -> str:
    """The name of a sweep's jobs: by it another start of the command finds them."""
    return f"{name}-{sweep_id[:8]}" if sweep_id else name


class _SlurmSweep:
    def __init__(self, sweep: SharedSweep, words: Sequence[str]) -> None:
        self.sweep, self.words, self.options = sweep, words, sweep.base.config.sweep.slurm
        self.name = jobs_name(sweep.base.config.name, sweep.ledger.sweep_id)
        self.jobs: list[str] = []
        self._told = ""

    def run(self, *, wait: bool) -> None:
        self.sweep.renew_lost()
        self.sweep.ledger.enqueue(self.sweep.due())
        try:
            self._submit()
            if not wait:
                return
            with Preemption().watch(), self.sweep.view:
                self._wait()
        except KeyboardInterrupt:
            raise LeftRunning(130, self._of_sweep()) from None
        except Preempted as error:
            raise LeftRunning(error.exit_code, self._of_sweep()) from None
        self._conclude()

    def _submit(self) -> None:
        left = [state for state in self._states().values() if state.state not in DONE]
        count, folder = min(self.options.workers, len(left)), self.sweep.folder.slurm
        if count == 0:
            return
        self.jobs = slurm_jobs.submit(self.options, self.name, folder, self.words, count)
        tell = self.sweep.view.tell
        tell(f"{count} jobs '{self.name}' are submitted: {' '.join(self.jobs)}; what they print is in {folder}")
        tell(f"cancel them with: {slurm_jobs.cancelling(self.jobs)}")
        if self.sweep.base.config.sweep.storage is None:
            tell("the ledger is sqlite in the sweep's folder: jobs on several nodes want a server database.")

    def _states(self) -> dict[str, PointState]:
        return joined(self.sweep.jobs, self.sweep.states())

    def _wait(self) -> None:
        """Show the points until they are done, or nobody is left who could do them."""
        looks = 0
        while True:
            left = slurm_jobs.jobs_left(self.name) if looks % LOOKS_PER_QUEUE == 0 else None
            looks += 1
            states = self._states()  # after the queue: what the last job has recorded counts
            self.sweep.view.update(states)
            if left is not None:
                self._tell_of(left)
            if left == {} or all(state.state in DONE for state in states.values()):
                return
            time.sleep(LOOK_S)

    def _tell_of(self, left: dict[str, str]) -> None:
        told = f"jobs: {slurm_jobs.in_words(left)}"
        if told != self._told:
            self._told = told
            self.sweep.view.tell(told)

    def _of_sweep(self) -> list[str]:
        """Numbers of the jobs that may still be there."""
        left = slurm_jobs.jobs_left(self.name)
        return self.jobs if left is None else list(left)

    def _conclude(self) -> None:
        self.sweep.ledger.free_dead()
        states = self._states()
        view, tracking_uri = self.sweep.view, redact(self.sweep.base.config.tracking.uri)
        rows = view.rows(states)
        view.console.print(final_table(rows), soft_wrap=True)
        view.tell(f"\n{next_commands(rows, tracking_uri, None)}")
        waiting = [key for key, state in states.items() if state.state not in (*DONE, "failed")]
        problems = self.sweep.problems({key: state for key, state in states.items() if key not in waiting})
        if waiting:
            problems.append(
                f"{len(waiting)} of {len(states)} points are not done, and no job of the sweep is left (see "
                f"{self.sweep.folder.slurm}); the same command goes on with them."
            )
        if problems:
            raise RunFailure("\n".join(problems))
