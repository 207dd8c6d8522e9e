"""What a SLURM job of a sweep runs: the ordinary `sweep` command, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class SlurmWorker:
    """A worker as submitit takes it, pickles it and calls it in the job.

    Attributes:
        words: of the `sweep` command, without those that submit jobs.
    """

    words: Sequence[str]
    _child: Any = field(default=None, init=False, repr=False)

    def __call__(self) -> None:
        """Run the command; the job ends with its exit code, so that SLURM says how it ended."""
        command = [sys.executable, "-m", "uniattn_pl", "sweep", *self.words]
        self._child = subprocess.Popen(command, env=as_on_one_machine(os.environ))
        code = self._child.wait()
        if code:
            sys.exit(code if code > 0 else 128 - code)  # no exception: submitit would call the job's end a result

    def checkpoint(self) -> Any:
        """Called by submitit when the time limit is near: the fit saves its state, then the job queues again."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            self._child.send_signal(signal.SIGUSR1)
            # not `wait`: this runs in a signal's handler, in the middle of one
            os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(SlurmWorker(self.words))


def as_on_one_machine(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what says that SLURM starts one task.

    The worker starts its fits itself, and these all their ranks, as on a machine without SLURM; which cores and GPUs
    they see stays SLURM's choice.
    """
    return {name: value for name, value in environment.items() if not name.startswith(("SLURM_", "SUBMITIT_"))}
