"""`sweep --launcher slurm` before SLURM is asked; tests/resilience/test_slurm.py asks it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.sweeps.small_sweep import SmallSweep

from uniattn_pl.cli import main
from uniattn_pl.sweeps.slurm_worker import as_on_one_machine

SWEEP = ["sweep", "--config", "small.yaml"]
ON_SLURM = [*SWEEP, "--launcher", "slurm"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallSweep:
    monkeypatch.chdir(tmp_path)
    return SmallSweep(tmp_path, "{seeds: [0, 1]}")


def test_a_dry_run_prints_the_batch_script_and_writes_nothing(
    small: SmallSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm = "{partition: gpu, minutes: 90, gpus: 2, cpus: 8, memory_gib: 1.5, options: {account: me, exclusive: true}}"
    small.write(f"{{seeds: [0, 1], slurm: {slurm}}}")
    assert main([*ON_SLURM, "--workers", "3", "--dry-run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "batch script of each of 3 jobs:"
    asked = {line.removeprefix("#SBATCH --") for line in printed if line.startswith("#SBATCH")}
    wanted = {"partition=gpu", "time=90", "gpus-per-node=2", "cpus-per-task=8", "mem=1536M", "account=me", "exclusive"}
    assert asked >= wanted | {"nodes=1", "ntasks-per-node=1", "signal=USR1@180", "requeue", "job-name=small"}
    assert "export SUBMITIT_PREEMPT_SIGNAL=USR1" in printed
    assert any("srun" in line and "submitit.core._submit" in line for line in printed)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["sweep.slurm.options={time: 10}"], "'time' is set by sweep.slurm.minutes."),
        (["sweep.slurm.options={signal: USR2}"], "'signal' is set by the sweep itself"),
        (["sweep.slurm.options={--account: me}"], "'--account' is no long option of sbatch; write account"),
        (["sweep.slurm.options={account: [a, b]}"], "'account' needs the text or number behind --account="),
        (['sweep.slurm.options={account: "a\\nb"}'], "'account' needs the text or number behind --account="),
        (["sweep.slurm.gpu=1"], "unknown key 'sweep.slurm.gpu'. Did you mean 'sweep.slurm.gpus'?"),
        (["--workers", "-1"], "sweep.slurm.workers"),
    ],
)
def test_what_jobs_cannot_be_is_told(
    words: list[str], problem: str, small: SmallSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ON_SLURM, "--dry-run", *words]) == 2
    assert problem in capsys.readouterr().err


def test_options_of_jobs_without_jobs_are_refused(small: SmallSweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SWEEP, "--no-wait"]) == 2
    assert "give --launcher slurm, too" in capsys.readouterr().err


def test_it_is_told_where_there_is_no_slurm_and_that_jobs_would_hold_a_password(
    small: SmallSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert main([*ON_SLURM, "sweep.storage=postgresql+psycopg://me:battery@host/db"]) == 2
    absent, held = capsys.readouterr().err.splitlines()
    assert "there are no sbatch and squeue here" in absent
    assert "sweep.storage='${oc.env:VARIABLE}'" in held
    assert "battery" not in held
    assert not Path("runs").exists()


def test_a_worker_starts_its_fits_as_on_a_machine_without_slurm() -> None:
    given = {"SLURM_NTASKS": "1", "SUBMITIT_FOLDER": "x", "CUDA_VISIBLE_DEVICES": "3", "SLURMD_DEBUG": "0"}
    assert as_on_one_machine(given) == {"CUDA_VISIBLE_DEVICES": "3", "SLURMD_DEBUG": "0"}
