"""The workers of a sweep as jobs of a SLURM cluster: their batch script, submitting them, which of them are left."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from uniattn_pl.config.sections.sweep_sections import SlurmConfig
from uniattn_pl.errors import RunFailure, UserError
from uniattn_pl.printed_commands import install
from uniattn_pl.redaction import redact
from uniattn_pl.sweeps.slurm_worker import SlurmWorker

SAVING_S = 180  # before the time limit: for an optimizer step to end and its checkpoint to be written
TIMES_QUEUED = 1000  # a job goes on after its time limit as long as there is work
PREEMPT_SIGNAL = "USR1"  # what fits and sweeps heed besides SIGTERM; submitit's own would kill them
QUEUE_PATIENCE_S = 60


def batch_script(options: SlurmConfig, name: str, folder: Path) -> str:
    """The file that a worker's job is submitted with, wherever SLURM is; nothing is written.

    Args:
        name: of the jobs.
        folder: for what submitit and the jobs write.
    """
    executor = _executor(options, name, folder, here=False)
    return str(executor._make_submission_file_text(executor._submitit_command_str, uid="dry-run"))


def check_slurm(words: Sequence[str]) -> None:
    """Raise UserError where jobs cannot be submitted from here, or `words`, which jobs get, hold credentials."""
    _submitit()
    problems = []
    if shutil.which("sbatch") is None or shutil.which("squeue") is None:
        problems.append(
            "--launcher slurm: there are no sbatch and squeue here; run it on a machine of a SLURM cluster, or without "
            "--launcher for a worker on this one."
        )
    for word in words:
        if redact(word) != word:
            problems.append(
                f"{redact(word)}: jobs are files, which would hold these credentials; set an environment variable and "
                f"write {word.partition('=')[0]}='${{oc.env:VARIABLE}}'."
            )
    if problems:
        raise UserError(*problems)


def submit(options: SlurmConfig, name: str, folder: Path, words: Sequence[str], count: int) -> list[str]:
    """Submit workers; returns the numbers of their jobs.

    Args:
        words: of the `sweep` command that each of them runs.

    Raises:
        RunFailure: SLURM refuses a job; those before it are told, and run.
    """
    from submitit.core.utils import FailedJobError

    executor, jobs = _executor(options, name, folder, here=True), list[str]()
    try:
        for _ in range(count):
            with redirect_stderr(StringIO()):  # submitit prints what it then raises
                jobs.append(str(executor.submit(SlurmWorker(list(words))).job_id))
    except (FailedJobError, subprocess.CalledProcessError, OSError) as error:
        told = " ".join(str(error).split())
        submitted = f" Submitted before it: {' '.join(jobs)}; cancel them with: {cancelling(jobs)}" if jobs else ""
        raise RunFailure(f"SLURM does not take the job: {told}{submitted}") from error
    return jobs


def cancelling(jobs: Sequence[str]) -> str:
    """The command that ends jobs; their fits save their state first."""
    return f"scancel {' '.join(jobs)}"


def jobs_left(name: str) -> dict[str, str] | None:
    """Number -> state, in SLURM's word, of the user's jobs of that name that have not ended; None: no answer.

    In the order in which they were submitted.
    """
    try:
        done = subprocess.run(
            ["squeue", "--me", "--noheader", "--sort=i", "--format=%i|%T|%j"],
            capture_output=True,
            text=True,
            check=True,
            timeout=QUEUE_PATIENCE_S,
        )
    except (subprocess.SubprocessError, OSError):
        return None
    rows = [line.strip().split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2]
    return {number: state for number, state, of in rows if of == name}


def in_words(jobs: dict[str, str]) -> str:
    """How many jobs are in which state."""
    return ", ".join(f"{count} {state.lower()}" for state, count in sorted(Counter(jobs.values()).items())) or "none"


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError(f"--launcher slurm needs submitit; install it with: {install('uniattn-pl[slurm]')}") from error
    return submitit


def _executor(options: SlurmConfig, name: str, folder: Path, *, here: bool) -> Any:
    submitit = _submitit()

    class Anywhere(submitit.SlurmExecutor):  # type: ignore[name-defined]
        """Writes scripts on machines without SLURM, too."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    executor = (submitit.SlurmExecutor if here else Anywhere)(folder=folder, max_num_timeout=TIMES_QUEUED)
    asked = {
        "partition": options.partition,
        "gpus_per_node": options.gpus or None,
        "cpus_per_task": options.cpus,
        "mem": None if options.memory_gib is None else f"{round(options.memory_gib * 1024)}M",
    }
    further = {str(option): value for option, value in options.options.items()}
    executor.update_parameters(
        job_name=name,
        time=options.minutes,
        nodes=1,
        ntasks_per_node=1,
        stderr_to_stdout=True,
        setup=[f"export SUBMITIT_PREEMPT_SIGNAL={PREEMPT_SIGNAL}"],
        additional_parameters={"requeue": True, "signal": f"{PREEMPT_SIGNAL}@{SAVING_S}", **further},
        **{option: value for option, value in asked.items() if value is not None},
    )
    return executor
