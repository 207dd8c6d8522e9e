"""A worker of a sweep: claims a job, runs its command, records what came of it, until no job is left."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.yaml_scalars import dump_value
from uniattn_pl.errors import RunFailure
from uniattn_pl.files import atomic_file
from uniattn_pl.redaction import redact
from uniattn_pl.resilience.identity import digests_of
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.resilience.preemption import Preemption
from uniattn_pl.run_folder import check_run_folder
from uniattn_pl.sweeps import child_process
from uniattn_pl.sweeps.jobs import FIT, Job, elsewhere, joined
from uniattn_pl.sweeps.ledger import GRACE_S, HEARTBEAT_S, Claim, LedgerSilentError, in_a_line
from uniattn_pl.sweeps.locks import locked
from uniattn_pl.sweeps.lost_points import lost_model, run_lost
from uniattn_pl.sweeps.parent_run import close_parent, open_parent
from uniattn_pl.sweeps.point_contents import changed_meanwhile, rows_digest
from uniattn_pl.sweeps.point_state import PointState
from uniattn_pl.sweeps.point_tags import tag_points
from uniattn_pl.sweeps.shared_sweep import SharedSweep
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.sweeps.view import ENDED, best_of, final_table, next_commands, result_of
from uniattn_pl.sweeps.warm_start import start_from_others
from uniattn_pl.tracking.final_table import as_text
from uniattn_pl.tracking.fit_result import INITIAL, STAGE1

POLL_S = 1.0
POLLS_PER_LOOK = 10  # a look at the ledger costs a tenth of a second, which the jobs want
ON_THE_WAY = {"initialise": INITIAL, "stage1": STAGE1}  # phases that end with a loss to prune by


class SweepStopped(RunFailure):
    """A signal ended this worker in good order."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__("the sweep was told to end; its points are kept, and the same command goes on with them.")


def run_sweep(
    base: LoadedConfig,
    points: Sequence[Point],
    rates: Mapping[str, float | None],
    arguments: Sequence[str],
    *,
    whole: bool = True,
) -> str:
    """Work on a sweep until every point is finished, pruned or given up; any number of processes may.

    Returns:
        What to say at the very end: the commands that go on with its models.

    Args:
        base: the sweep's config.
        points: checked, in the order to run them.
        rates: key -> KV retain rate, where it is known before the fit.
        arguments: the words of a command line that load `base`.
        whole: whether these are all of its points: a rank among some of them says nothing.

    Raises:
        RunFailure: points failed or can be evaluated only elsewhere, or the ledger does not answer.
        SweepStopped: a signal asked to end.
    """
    preemption = Preemption()
    try:
        # only noted: an exception out of a handler may come where Python swallows it
        with preemption.watch(), preemption.deferred():
            return _Worker(base, points, rates, arguments, preemption, whole).run()
    except LedgerSilentError as error:
        raise RunFailure(f"the ledger of the sweep does not answer: {in_a_line(error)}") from error


class _Worker:
    def __init__(
        self,
        base: LoadedConfig,
        points: Sequence[Point],
        rates: Mapping[str, float | None],
        arguments: Sequence[str],
        preemption: Preemption,
        whole: bool,
    ) -> None:
        self.preemption, self.arguments, self.whole = preemption, list(arguments), whole
        self.sweep = sweep = SharedSweep(base, points, rates)
        self.base, self.jobs, self.identities, self.folder = base, sweep.jobs, sweep.identities, sweep.folder
        self.folders, self.ledger, self.view = sweep.folders, sweep.ledger, sweep.view
        self.parent: str | None = None
        self._last_sign = time.monotonic()

    def run(self) -> str:
        """Work until nothing is left, then show and record the outcome; returns the commands that go on from it."""
        with self.ledger.alone():
            self.parent = open_parent(self.base, self.folder, self.ledger.sweep_id, self.view.tell)
        lost = self.sweep.renew_lost()
        # an evaluation that was given up may have failed because its model was lost
        again = [key for key, job in self.jobs.items() if job.command != FIT and job.point.key in lost]
        self.ledger.enqueue([*self.sweep.due(), *again], again=True)
        with self.view:
            while self._step():
                pass
        return self._conclude(joined(self.jobs, self.sweep.states()))

    def _step(self) -> bool:
        """Do one job, or wait for other workers; returns whether anything is left."""
        self._heed_signals()
        self.ledger.free_dead()
        possible = self.sweep.due()
        self.ledger.enqueue(possible)
        states = self.sweep.states()
        self.view.update(joined(self.jobs, states))
        if possible == self.sweep.due(states) and self._nothing_left(possible, states):
            return False
        claim = self.ledger.claim(possible)
        if claim is None:
            time.sleep(POLL_S)
        else:
            self._work(claim)
        return True

    def _nothing_left(self, possible: list[str], states: dict[str, PointState]) -> bool:
        """Whether all that can be done here is done, and no worker elsewhere is working or expected to go on."""
        if any(states[key].state not in ENDED for key in possible) or "running" in {s.state for s in states.values()}:
            self._last_sign = time.monotonic()
            return False
        other_machines = [states[key] for key in elsewhere(self.jobs, states, self.folders)]
        expected = [state for state in other_machines if state.state != "finished" and not self.ledger.given_up(state)]
        return not expected or time.monotonic() - self._last_sign > GRACE_S

    def _heed_signals(self) -> None:
        if self.preemption.received is not None:
            raise SweepStopped(self.preemption.received)

    def _work(self, claim: Claim) -> None:
        job = self.jobs[claim.key]
        folder = self.folders[job.point.key]
        check_run_folder(folder)
        tracking = self.base.config.tracking
        try:
            done = job.command == FIT and not (lost_model(folder) or run_lost(folder, tracking))
            code = 0 if done else self._run(claim, job, folder)
        except BaseException:
            self.ledger.release(claim)
            raise
        self._record(claim, job, folder, code)

    def _record(self, claim: Claim, job: Job, folder: Path, code: int | None) -> None:
        """Tell the ledger how a job ended; `code` None: its fit was pruned."""
        if job.command == FIT:
            self._report(claim, folder)
        result = result_of(folder)
        loss = math.nan if result is None else result.milestones[-1].response_loss
        changed = changed_meanwhile(self.identities[job.point.key], folder)
        if changed is not None:
            self.ledger.fail(claim, changed)
        elif result is not None and math.isfinite(loss) and (job.command == FIT or code == 0):
            rows = rows_digest(digests_of(self.identities[job.point.key]))
            steps, kv_rate = sum(s.steps for s in result.stages), result.cache.retain_rate
            self.ledger.finish(claim, loss, step=steps, kv_rate=kv_rate, rows=rows)
        elif code is None:
            self.ledger.prune(claim)
        else:
            self.ledger.fail(claim, child_process.reason(self.folder.log(folder), code))

    def _run(self, claim: Claim, job: Job, folder: Path) -> int | None:
        """Run a job's command, or what is left of it; returns its exit code, None when it is a fit that was pruned."""
        words = [*job.point.words, f"trainer.default_root_dir={dump_value(str(folder))}"]
        if job.command == FIT:
            self._warm_start(job.point, folder)
        if self.parent is not None:
            words.append(f"tracking.parent_run={self.parent}")
        child = child_process.start(job.command, [*self.arguments, *words], self.folder.log(folder), claim.lock)
        beaten, polls = time.monotonic(), 0
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    code = child.wait(timeout=POLL_S)
                    self._heed_signals()
                    return code
                self._heed_signals()
                polls += 1
                if polls % POLLS_PER_LOOK != 1:  # the first look shows that the job runs
                    continue
                with suppress(LedgerSilentError):  # the job goes on; whether the ledger answers matters at the end
                    if time.monotonic() - beaten > HEARTBEAT_S:
                        self.ledger.beat(claim)
                        beaten = time.monotonic()
                    self.view.update(joined(self.jobs, self.sweep.states()))
                    if job.command == FIT and self._report(claim, folder):
                        return None
        finally:
            child_process.stop(child)

    def _warm_start(self, point: Point, folder: Path) -> None:
        config = redact(dataclasses.asdict(point.loaded.config))
        config["trainer"]["default_root_dir"] = str(folder)
        others = [other for other in self.folders.values() if other != folder]
        taken = start_from_others(folder, point.name, config, digests_of(self.identities[point.key]), others)
        if taken is not None:
            self.view.tell(f"{point.name} {taken}")

    def _report(self, claim: Claim, folder: Path) -> bool:
        """Tell the ledger the losses that a fit has measured so far; returns whether it is to be pruned."""
        manifest = Manifest.read(folder)
        if manifest is None:
            return False
        pruned = False
        for step, (phase, name) in enumerate(ON_THE_WAY.items()):
            quality = manifest.results.get(phase, {}).get("milestones", {}).get(name)
            if quality is not None:
                pruned = self.ledger.report(claim, step, quality["response_loss"]) or pruned
        return pruned

    def _conclude(self, states: dict[str, PointState]) -> str:
        rows = self.view.rows(states)
        report = final_table(rows)
        commands = next_commands(rows, redact(self.base.config.tracking.uri), self.parent)
        self.view.console.print(report, soft_wrap=True)
        table = f"{as_text(report)}\n{commands}\n"
        with locked(self.folder.lock), atomic_file(self.folder.table) as file:  # other workers end here, too
            file.write(table.encode())
        problems = self.sweep.problems(states)
        with self.ledger.alone():
            if self.whole:
                tag_points(self.base.config.tracking, self.base.config.name, rows, self.view.tell)
            close_parent(
                self.base,
                self.folder,
                self.ledger.sweep_id,
                status="FAILED" if problems else "FINISHED",
                best=best_of(rows),
                table=table,
                tell=self.view.tell,
            )
        if problems:
            self.view.tell(f"\n{commands}")
            raise RunFailure("\n".join(problems))
        return commands
