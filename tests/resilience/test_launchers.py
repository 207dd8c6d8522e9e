"""Schedulers' variables and devices that cannot be so: one message that names them, whatever command reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniattn_pl.cli import main
from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.errors import UserError
from uniattn_pl.inference.device import trainer_device
from uniattn_pl.resilience import devices
from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.resilience.launchers import launcher

SLURM = {
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_JOB_ID": "1234",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "id",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
TWO = ("trainer.devices=2",)
NAMES = (*SLURM, "SLURM_NNODES", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_NAME", *TORCHRUN, "GROUP_RANK", "NODE_RANK")


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


# environment, words, what the message names
WRONG: dict[str, tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]] = {
    "two tasks, one device": (SLURM, (), ("SLURM_NTASKS_PER_NODE=2", "trainer.devices=auto (1 here)")),
    "two tasks, a shell of salloc": ({"SLURM_NTASKS": "2"}, (), ("SLURM_NTASKS=2", "SLURM_PROCID", "srun --ntasks=1")),
    "two tasks, nobody says where": (without(SLURM, "SLURM_NTASKS_PER_NODE"), TWO, ("--ntasks-per-node=2",)),
    "four tasks a node": ({**SLURM, "SLURM_NTASKS_PER_NODE": "4"}, TWO, ("PER_NODE=4", "set trainer.devices=4")),
    "two machines": ({**SLURM, "SLURM_NNODES": "2"}, TWO, ("SLURM_NNODES=2", "set trainer.num_nodes=2")),
    "two machines here": (SLURM, (*TWO, "trainer.num_nodes=2", "training.batch_size=4"), ("SLURM_NTASKS=2", "makes 4")),
    "a task beyond the last": ({**SLURM, "SLURM_PROCID": "2"}, TWO, ("SLURM_PROCID=2 must be below SLURM_NTASKS=2",)),
    "tasks without a number": ({**SLURM, "SLURM_NTASKS": "two"}, TWO, ("SLURM_NTASKS='two' is no whole number",)),
    "no number to make a port of": ({**SLURM, "SLURM_JOB_ID": "7_a"}, TWO, ("SLURM_JOB_ID='7_a'",)),
    "torchrun says nothing": ({"TORCHELASTIC_RUN_ID": "id"}, (), ("WORLD_SIZE, RANK, LOCAL_RANK are not set",)),
    "no rank": (without(TORCHRUN, "RANK"), (), ("RANK is not set",)),
    "nowhere to meet": (without(TORCHRUN, "MASTER_ADDR"), (), ("MASTER_ADDR is not set",)),
    "a rank beyond the last": ({**TORCHRUN, "RANK": "2"}, (), ("RANK=2 must be below WORLD_SIZE=2",)),
    "negative rank": ({**TORCHRUN, "RANK": "-1"}, (), ("RANK='-1' is no whole number",)),
    "no such port": ({**TORCHRUN, "MASTER_PORT": "99999"}, (), ("MASTER_PORT=99999 is no port",)),
    "other devices": (
        {**TORCHRUN, "WORLD_SIZE": "4"},
        TWO,
        ("WORLD_SIZE=4", "trainer.devices=2", "trainer.devices=auto"),
    ),
    "half of a machine": ({**TORCHRUN, "WORLD_SIZE": "3"}, (), ("WORLD_SIZE=3 is no multiple of LOCAL_WORLD_SIZE=2",)),
    "a world alone": ({"WORLD_SIZE": "2"}, (), ("WORLD_SIZE=2", "RANK, LOCAL_RANK, MASTER_ADDR are not set")),
    "a world and a rank": ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a"}, (), ("LOCAL_RANK is not set",)),
    "a process beyond the last": ({"LOCAL_RANK": "5"}, TWO, ("LOCAL_RANK=5 must be below", "trainer.devices=2")),
    "a task of another machine": ({**SLURM, "SLURM_LOCALID": "2"}, TWO, ("SLURM_LOCALID=2 must be below",)),
    "local rank that is a word": ({"LOCAL_RANK": "x"}, (), ("LOCAL_RANK='x'",)),
    "port that is a word": ({"MASTER_PORT": "abc"}, (), ("MASTER_PORT='abc'",)),
    "no such kind": ({}, ("trainer.accelerator=gpus",), ("trainer.accelerator", "Did you mean 'gpu'?")),
    "no TPU": ({}, ("trainer.accelerator=tpu",), ("must be one of auto, cpu, gpu, cuda, mps",)),
    "no Mac": ({}, ("trainer.accelerator=mps",), ("there is no 'mps' in this machine",)),
    "all GPUs of a CPU": ({}, ("trainer.accelerator=cpu", "trainer.devices=-1"), ("trainer.devices", "got -1")),
    "a list on a CPU": ({}, ("trainer.accelerator=cpu", "trainer.devices='0,1'"), ("trainer.devices", "'0,1'")),
    "no process": ({}, ("trainer.accelerator=cpu", "trainer.devices='0'"), ("trainer.devices", "'0'")),
    "precision of GPUs": ({}, ("trainer.accelerator=cpu", "training.precision=16-mixed"), ("training.precision",)),
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No launcher, and a working folder with a tiny experiment."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(
        "model: {source: tiny-llama}\ndata: {num_samples: 12, validation_size: 4}\n"
        "architecture: {name: uniattn, superblock_size: 2, num_superblocks: 1}\n"
        "training: {batch_size: 4, micro_batch_size: 1}\n"
    )
    return tmp_path


@pytest.mark.parametrize("dry", [False, True], ids=["fit", "dry run"])
@pytest.mark.parametrize("case", WRONG)
def test_a_fit_names_what_cannot_be(
    case: str, dry: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], alone: Path
) -> None:
    environment, words, expected = WRONG[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["fit", "--config", "tiny.yaml", *words, *(["--dry-run"] if dry else [])]) == 2
    printed = capsys.readouterr().err
    for part in expected:
        assert part in printed
    assert printed.count("error: ") == 1
    assert [entry.name for entry in alone.iterdir()] == ["tiny.yaml"], "nothing was begun"


@pytest.mark.parametrize("command", ["evaluate", "bench", "analyze"])
@pytest.mark.parametrize(
    ("environment", "word", "expected"),
    [
        ({}, "trainer.accelerator=mps", "there is no 'mps'"),
        ({**SLURM, "SLURM_PROCID": "1"}, "seed=1", "only a fit runs in several processes"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "2"}, "seed=1", "SLURM has started 2 (SLURM_NTASKS=2)"),
        (TORCHRUN, "seed=1", "torchrun has started 2 (WORLD_SIZE=2)"),
        (SLURM, "seed=1", None),
        ({"SLURM_NTASKS": "2"}, "trainer.devices=8", None),
        ({"SLURM_NTASKS": "x"}, "seed=1", None),
    ],
)
def test_other_commands_run_in_one_process_whatever_was_allocated(
    command: str,
    environment: dict[str, str],
    word: str,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = [command, "--config", "tiny.yaml", word, "training.batch_size=8", "evaluation.probes=[held_out]"]
    assert main([*words, "--dry-run"]) == (0 if expected is None else 2)
    assert (expected or "dry run") in "".join(capsys.readouterr())


def test_an_interactive_job_of_slurm_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, "SLURM_JOB_NAME": "bash"}.items():
        monkeypatch.setenv(name, value)
    assert Cluster(ExperimentConfig()).world_size == 1


def test_one_device_needs_no_launcher() -> None:
    config = ExperimentConfig()
    config.trainer.accelerator = "cpu"
    assert trainer_device(config) == torch.device("cpu")


TEXTS = st.sampled_from(["0", "1", "2", "4", "", "-1", "x", "1.5", "99999999999999999999", " 2"])


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(NAMES), TEXTS))
def test_any_environment_is_read_or_told(environment: dict[str, str]) -> None:
    found = launcher(environment)
    assert found.problems or found.rank < found.world_size
    assert found.problems or found.mismatches(1, 1, "trainer.devices=1") or found.world_size == 1 or not found.name


@pytest.mark.parametrize("asked", ["auto", 1, 2, 4, "2", "-1", -1, "0,1", "1,", "0,0", "7", "0,9"])
@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda", "cpu"])
def test_what_passes_on_two_gpus_is_what_is_there(
    accelerator: str, asked: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "kinds", lambda: {"cuda": 2, "cpu": 4})
    config = ExperimentConfig()
    config.trainer.accelerator = accelerator
    told = devices.device_problems(config, asked)
    on_cpu = accelerator == "cpu"
    allowed = ["auto", 1, 2, 4, "2", "7"] if on_cpu else ["auto", 1, 2, "2", "-1", -1, "0,1", "1,"]
    assert (asked in allowed) == (not told)
    if not told:
        assert devices.devices_on_node(asked, accelerator) == (
            {"auto": 1, "2": 2, "7": 7}.get(str(asked), asked)
            if on_cpu
            else {"auto": 2, "2": 2, "-1": 2, "0,1": 2, "1,": 1}.get(str(asked), asked)
        )


def test_what_lightning_refuses_besides_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (
        ValueError("a\nb"),
        RuntimeError(),
        KeyError("X"),
        AssertionError("c"),
        TypeError("d"),
        OSError(2, "e"),
    ):

        def refuse(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("uniattn_pl.resilience.cluster.Fabric", refuse)
        with pytest.raises(UserError, match=r"Lightning cannot start so: ."):
            Cluster(ExperimentConfig())
