"""Which points `sweep` works on, and what it says they need."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.sweeps.small_sweep import SmallSweep

from uniattn_pl.cli import main

SWEEP = ["sweep", "--config", "small.yaml"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallSweep:
    monkeypatch.chdir(tmp_path)
    return SmallSweep(tmp_path, "{}")


def test_memory_is_that_of_the_larger_enabled_stage_on_each_device_that_shares(
    small: SmallSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    eight = "trainer.devices: 8, training.batch_size: 16"
    small.write(
        "{points: {untrained: {training.stage1.enabled: false, training.stage2.enabled: false}, whole: {seed: 1}, "
        "only_w_c: {training.stage2.enabled: false}, "
        f"shared: {{training.strategy: fsdp, {eight}}}, copied: {{seed: 2, training.strategy: ddp, {eight}}}, "
        "chosen: {architecture: {name: llmdrop, num_dropped: 2}}}}"
    )
    assert main([*SWEEP, "--dry-run"]) == 0
    cells = {row.split()[0]: row.split()[2:-2] for row in capsys.readouterr().out.splitlines()[2:8]}
    assert cells["untrained"] == ["-"]
    assert cells["chosen"] == ["measured"]
    assert cells["whole"] == cells["copied"]
    assert len({" ".join(cells[name]) for name in ("whole", "only_w_c", "shared")}) == 3


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("wide", ["wide"]),
        ("cla,wide", ["wide", "cla"]),
        ("size=2,seed=0,cla", ["cla", "size=2,seed=0"]),
    ],
)
def test_only_some_points_are_run(
    words: str, names: list[str], small: SmallSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.write("{points: {wide: {seed: 1}, cla: {architecture.superblock_size: 2}, 'size=2,seed=0': {seed: 2}}}")
    calls = []
    monkeypatch.setattr("uniattn_pl.sweeps.worker.run_sweep", lambda *arguments, whole: calls.append(arguments))
    assert main([*SWEEP, "--only", words, "seed=3"]) == 0
    ((_, points, rates, arguments),) = calls
    assert [point.name for point in points] == names
    assert rates.keys() == {point.key for point in points}
    assert arguments == ["--config", "small.yaml", "seed=3"], "a fit takes the words of its point besides"


def test_a_point_that_is_not_there_is_told(small: SmallSweep, capsys: pytest.CaptureFixture[str]) -> None:
    small.write("{points: {wide: {seed: 1}, cla: {architecture.superblock_size: 2}}}")
    assert main([*SWEEP, "--dry-run", "--only", "wied,cla,nothing"]) == 2
    problems = capsys.readouterr().err
    assert "--only: the sweep has no point 'wied'. Did you mean 'wide'?" in problems
    assert "--only: the sweep has no point 'nothing'. There are: wide, cla." in problems
