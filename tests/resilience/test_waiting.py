"""A fit whose other processes do not come says what it waits for, and a signal ends it at once."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).parent / "waiting_driver.py"
CONFIG = """\
name: tiny
model: {source: tiny-llama}
data: {num_samples: 12, validation_size: 4}
architecture: {name: uniattn, superblock_size: 2, num_superblocks: 1}
training: {batch_size: 2, micro_batch_size: 1}
trainer: {devices: 2}
"""


def slurm(rank: int, port: int) -> dict[str, str]:
    """What sbatch sets for two tasks, in a process that nobody but the user has started."""
    named = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7"}
    place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
    return {**named, **place, "MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1"}


def torchrun(rank: int, port: int, host: str = "127.0.0.1") -> dict[str, str]:
    named = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    return {**named, **place, "MASTER_PORT": str(port), "MASTER_ADDR": host}


def by_hand(rank: int, port: int) -> dict[str, str]:
    """What Lightning sets for the processes it starts; here its first process is not there."""
    return {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1"}


CASES = {
    "srun forgotten": (slurm(0, 1), signal.SIGTERM, "waiting for 1 of 2 processes at 127.0.0.1:", 143),
    "srun forgotten, Ctrl-C": (slurm(0, 1), signal.SIGINT, "SLURM_NTASKS=2; started without srun?", 130),
    "the first task is missing": (slurm(1, 1), signal.SIGTERM, "the first of 2 processes, which is to listen at", 143),
    "a rank of torchrun is missing": (torchrun(0, 1), signal.SIGINT, "WORLD_SIZE=2; torchrun is to start all", 130),
    "no such host": (torchrun(1, 1, "no-such-host.invalid"), signal.SIGTERM, "at no-such-host.invalid:", 143),
    "Lightning's first process is missing": (by_hand(1, 1), signal.SIGTERM, "trainer.devices=2; Lightning starts", 143),
}


@pytest.fixture(scope="module")
def waited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("waiting")
    (folder / "tiny.yaml").write_text(CONFIG)
    jobs = []
    for environment, number, _, _ in CASES.values():
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        named = {**environment, "MASTER_PORT": port}
        arguments = ["fit", "--config", "tiny.yaml"]
        jobs.append({"folder": str(folder), "environment": named, "arguments": arguments, "signal": int(number)})
    command = [sys.executable, str(DRIVER), json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == len(jobs), done.stderr
    return dict(zip(CASES, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_it_waits_for_and_dies_by_a_signal(case: str, waited: dict[str, dict[str, object]]) -> None:
    _, _, expected, code = CASES[case]
    result = waited[case]
    assert expected in str(result["said"])
    assert result["code"] == code
    assert "Traceback" not in str(result["then"])
