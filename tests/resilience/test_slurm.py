"""SLURM for real: fits of several tasks that it preempts, and sweeps whose workers are its jobs."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.resilience.slurm_cluster import SlurmCluster, eventually, missing
from tests.sweeps.small_sweep import SmallSweep
from tests.tiny_fit import BASE, ROWS
from tests.training.test_kill_and_resume import history

from uniattn_pl.cli import main
from uniattn_pl.sweeps import slurm_sweep
from uniattn_pl.tracking.journal import FILE, FOLDER

PYTHON = f"{sys.executable} -m uniattn_pl"
FIT = f"srun {PYTHON} fit --config tiny.yaml trainer.devices=2"
TRAINING = """
training: {batch_size: 4, micro_batch_size: 2, checkpoint_every_steps: 1000, strategy: ddp,
           stage1: {max_steps: 4}, stage2: {max_steps: 100, max_epochs: 1000, learning_rate: 1.0e-3}}
"""
SWEEP = ["sweep", "--config", "small.yaml", "--launcher", "slurm"]
ENDED = ("COMPLETED", "FAILED", "CANCELLED")
PATIENCE_S = 240  # of a machine that does much else


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    why_not = missing()
    if why_not is not None:
        pytest.skip(why_not)
    cluster = SlurmCluster()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def state(cluster: SlurmCluster, job: str) -> str:
    return cluster.facts(job)["JobState"]


def test_a_fit_of_two_tasks_that_is_queued_again_ends_with_the_bits_of_one_that_was_not(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    jobs = {}
    for name in ("whole", "preempted"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
        (folder / "tiny.yaml").write_text(BASE.replace("devices: 1", "devices: 2") + TRAINING, encoding="utf-8")
        jobs[name] = cluster.submit(folder, "fit", FIT)
    preempted, output = tmp_path / "preempted/runs/tiny", tmp_path / "preempted/fit.out"

    journal = preempted / FOLDER / FILE
    in_stage_2 = lambda: journal.exists() and "stage2/loss" in journal.read_text()  # noqa: E731
    eventually(lambda: in_stage_2() or state(cluster, jobs["preempted"]) in ENDED, PATIENCE_S, cluster.logs())
    assert in_stage_2(), output.read_text()
    cluster.run("scontrol", "requeue", jobs["preempted"])
    for job in jobs.values():
        eventually(lambda job=job: state(cluster, job) in ENDED, PATIENCE_S, cluster.logs())  # type: ignore[misc]
    assert {state(cluster, job) for job in jobs.values()} == {"COMPLETED"}, output.read_text()
    assert cluster.facts(jobs["preempted"])["Restarts"] == "1"
    assert "SIGTERM received; step " in output.read_text(), "it was stopped in the middle of a stage"

    digests = {
        hashlib.sha256((tmp_path / name / "runs/tiny/final/model.safetensors").read_bytes()).hexdigest()
        for name in jobs
    }
    assert len(digests) == 1
    losses = [history(tmp_path / name)["stage2/loss"] for name in jobs]
    assert losses[0] == losses[1]


def test_workers_are_jobs_and_what_one_leaves_the_others_do(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = SmallSweep(tmp_path, "{seeds: [0, 1], max_steps: 2, slurm: {workers: 5, partition: main, minutes: 90}}")

    def interrupt(_: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(slurm_sweep, "time", SimpleNamespace(sleep=interrupt))
        assert main(SWEEP) == 130
    told = capsys.readouterr()
    killed, timed_out = told.err.partition("scancel ")[2].split()
    assert f"2 jobs '{cluster.facts(killed)['JobName']}' are submitted: {killed} {timed_out}" in told.out
    assert {state(cluster, job) for job in (killed, timed_out)} <= {"RUNNING", "PENDING"}, "they go on"
    assert cluster.facts(killed)["TimeLimit"] == "01:30:00"

    logs = small.folder / "runs/small/sweep/logs"
    eventually(lambda: len(list(logs.glob("*.log"))) == 2, PATIENCE_S, "each of them has a point")
    for process in cluster.processes(killed):
        with suppress(ProcessLookupError):  # one that ends with another
            os.kill(process, signal.SIGKILL)
    cluster.run("scancel", "--signal=USR1", timed_out)  # what SLURM sends before the time limit

    monkeypatch.setattr(slurm_sweep, "LOOK_S", 0.5)
    assert main([*SWEEP, "--workers", "0"]) == 0, "it waits for the jobs of the former command"
    told = capsys.readouterr()
    assert "submitted" not in told.out
    assert "jobs: 1 " in told.out
    assert small.table().count("finished") == 2
    eventually(lambda: state(cluster, timed_out) == "COMPLETED", PATIENCE_S, cluster.logs())
    assert cluster.facts(timed_out)["Restarts"] == "1"
    assert state(cluster, killed) == "FAILED"

    assert main(SWEEP) == 0
    assert "submitted" not in capsys.readouterr().out, "nothing is left to do"


def test_it_is_told_that_no_job_is_left_and_why_slurm_refuses(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    SmallSweep(tmp_path, "{seeds: [0, 1]}")
    assert main([*SWEEP, "--workers", "0"]) == 1
    assert "2 of 2 points are not done, and no job of the sweep is left" in capsys.readouterr().err
    assert main([*SWEEP, "--no-wait", "sweep.slurm.partition=none"]) == 1
    (problem,) = capsys.readouterr().err.splitlines()
    assert problem.startswith("error: SLURM does not take the job: ")
    assert "invalid partition specified: none" in problem
    assert main([*SWEEP, "--no-wait", "--workers", "1", "sweep.slurm.options={hold: true}"]) == 0, (
        "it does not wait for a job that does not start"
    )
    told = capsys.readouterr().out
    job = told.partition("scancel ")[2].split()[0]
    assert cluster.facts(job)["Reason"] == "JobHeldUser"
    cluster.run("scancel", job)
