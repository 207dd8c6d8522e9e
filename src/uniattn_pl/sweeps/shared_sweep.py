"""What every process of a sweep works with: its jobs, folders and ledger, and what is still to be done of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from uniattn_pl.config import LoadedConfig
from uniattn_pl.sweeps.jobs import FIT, due, jobs_of
from uniattn_pl.sweeps.ledger import Ledger
from uniattn_pl.sweeps.locks import locked
from uniattn_pl.sweeps.lost_points import lost_jobs
from uniattn_pl.sweeps.point_contents import check_elsewhere
from uniattn_pl.sweeps.point_state import PointState
from uniattn_pl.sweeps.sweep_folder import SweepFolder
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.sweeps.view import ENDED, SweepView
from uniattn_pl.training.present_identity import PresentIdentities


class SharedSweep:
    """A sweep as its workers and whoever waits for them see it.

    Args:
        base: the sweep's config.
        points: checked, in the order to run them.
        rates: key -> KV retain rate, where it is known before the fit.

    Raises:
        UserError: its folder or its ledger cannot be used.
        RunFailure: the ledger does not answer.
    """

    def __init__(self, base: LoadedConfig, points: Sequence[Point], rates: Mapping[str, float | None]) -> None:
        sweep = base.config.sweep
        self.base, self.points, present = base, points, PresentIdentities()
        self.identities = {point.key: present.of(point.loaded)[0] for point in points}
        self.jobs = jobs_of(points, self.identities)
        self.folder = SweepFolder(Path(base.config.trainer.default_root_dir))
        self.folder.check()
        with locked(self.folder.lock):
            self.folders = self.folder.record(points)
        self.ledger = Ledger(
            sweep.storage, base.config.name, self.folder, retries=sweep.retries, prune_after=sweep.prune_after
        )
        self.view = SweepView(points, self.folders, rates, Console())

    def states(self) -> dict[str, PointState]:
        """The state of each job, by its key."""
        return self.ledger.states(self.jobs)

    def due(self, states: Mapping[str, PointState] | None = None) -> list[str]:
        """Keys of the jobs that can be done now and here; `states`: those of the jobs, where they are known."""
        return due(self.jobs, self.states() if states is None else states, self.folders)

    def renew_lost(self) -> dict[str, str]:
        """Have done again what the ledger calls finished and is not there any more; returns what it is, by key.

        Raises:
            UserError: points were made of other rows, models or tokenizers than there are now.
        """
        states = self.states()
        check_elsewhere(self.points, states, self.identities)
        lost = lost_jobs(self.jobs, states, self.folders, self.base.config.tracking)
        for key, problem in lost.items():
            again = "fitted" if self.jobs[key].command == FIT else "evaluated"
            self.view.tell(f"{self.jobs[key].point.name}: {problem}; it is {again} again, as far as it is lost.")
        self.ledger.renew(lost)
        return lost

    def teacher(self, key: str) -> str | None:
        """The name of the point that a point learns from."""
        teacher = self.jobs[key].point.teacher
        return None if teacher is None else self.view.names[teacher]

    def problems(self, states: Mapping[str, PointState]) -> list[str]:
        """Lines about the points that failed or are not evaluated, and the command that does it."""
        failed = {key: state for key, state in states.items() if state.state == "failed"}
        untaught = {key: state for key, state in states.items() if state.state == "waiting" and self.teacher(key)}
        unfinished = {key: state for key, state in states.items() if state.state not in ENDED and key not in untaught}
        lines = [f"{len(failed)} of {len(states)} points failed; the same command tries them again."] if failed else []
        for key, state in failed.items():
            lines.append(f"{self.view.names[key]}: {state.error} (see {self.folder.log(self.folders[key])})")
        for key in untaught:
            teacher = self.teacher(key)
            lines.append(f"{self.view.names[key]}: not fitted; it learns from {teacher}, whose model is not here.")
        if unfinished:
            lines.append(
                f"{len(unfinished)} of {len(states)} points are not evaluated; the same command there does it."
            )
        for key, state in unfinished.items():
            lines.append(f"{self.view.names[key]}: its model is in {state.place or self.folders[key]}")
        return lines
