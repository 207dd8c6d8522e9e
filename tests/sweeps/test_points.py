"""Which points `sweep` works on, and what it says they need."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.sweeps.small_sweep import SmallSweep

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.sweeps.jobs import due, elsewhere, jobs_of, joined
from uniattn_pl.sweeps.point_state import PointState
from uniattn_pl.sweeps.points import load_points
from uniattn_pl.sweeps.sweep_point import Point

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


CACHE = {"length": 8, "measured": 1, "predicted": 1, "unmodified": 1}
TEACHER = "training.distillation.teacher"
TAUGHT = (
    f"{{second: {{{TEACHER}: first}}, first: {{architecture: {{name: baseline}}, training.stage1.enabled: false}}}}"
)


def points_of(small: SmallSweep, sweep: str) -> dict[str, Point]:
    small.write(sweep)
    file = small.folder / "small.yaml"
    return {point.name: point for point in load_points([file], [], load_config([file]))}


def test_a_point_learns_from_the_folder_of_the_point_it_names(small: SmallSweep) -> None:
    points = points_of(small, f"{{points: {TAUGHT}, seeds: [0, 1]}}")
    assert list(points) == ["second,seed=0", "second,seed=1", "first,seed=0", "first,seed=1"], "in the order written"
    for seed in (0, 1):
        second, first = points[f"second,seed={seed}"], points[f"first,seed={seed}"]
        assert (second.teacher, first.teacher) == (first.key, None), "the one of its own seed"
        folder = f"runs/small/first,seed={seed}"
        assert second.loaded.config.training.distillation.teacher == folder
        assert f"{TEACHER}={folder}" in second.words, "as its fit is told"
        assert sum(word.startswith(TEACHER) for word in second.words) == 1
    former = points["second,seed=0"].key
    changed = TAUGHT.replace("stage1.enabled: false", "stage2.max_steps: 3")
    (small.folder / "runs/small/first,seed=0").mkdir(parents=True)
    begun = points["first,seed=0"]
    Manifest(plain_config(begun.loaded)).write(small.folder / "runs/small/first,seed=0")
    points = points_of(small, f"{{points: {changed}, seeds: [0, 1]}}")
    folder = f"runs/small/first,seed=0.{points['first,seed=0'].key[:8]}"
    assert points["second,seed=0"].loaded.config.training.distillation.teacher == folder
    assert points["second,seed=0"].key != former, "another teacher makes it another point"


def test_a_fit_waits_for_its_teacher_wherever_that_is(small: SmallSweep) -> None:
    points = points_of(small, f"{{points: {TAUGHT}}}")
    first, second = points["first"].key, points["second"].key
    jobs, folders = jobs_of(list(points.values())), {first: small.folder / "a", second: small.folder / "b"}
    never = PointState("failed")
    states = {second: never, first: PointState("running")}
    assert due(jobs, states, folders) == [first]
    assert joined(jobs, states)[second].state == "waiting"
    states[first] = PointState("finished", place="another:machine")
    assert due(jobs, states, folders) == [first], "its model is not here"
    assert elsewhere(jobs, states, folders) == [second]
    Manifest(plain_config(points["first"].loaded), phase="done", results={"prepare": {"cache": CACHE}}).write(
        folders[first]
    )
    assert due(jobs, {**states, first: PointState("finished")}, folders) == [second, first]


def test_wrong_teachers_are_told_and_only_brings_the_teacher_along(
    small: SmallSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write(f"{{points: {{a: {{{TEACHER}: a}}, b: {{{TEACHER}: a}}, c: {{{TEACHER}: nobody}}}}}}")
    assert main([*SWEEP, "--dry-run"]) == 2
    assert "there is no folder 'nobody'" in capsys.readouterr().err
    small.write(f"{{points: {{a: {{{TEACHER}: a}}, b: {{{TEACHER}: a, seed: 1}}}}}}")
    assert main([*SWEEP, "--dry-run"]) == 2
    problems = capsys.readouterr().err
    assert f"point 'a': {TEACHER} is the point itself" in problems
    assert "point 'b': its teacher 'a' learns from a point, too" in problems
    small.write(f"{{points: {TAUGHT}, then: [bench, reprot]}}")
    assert main([*SWEEP, "--dry-run"]) == 2
    assert "sweep.then: 'reprot' does not follow a sweep. Did you mean 'report'?" in capsys.readouterr().err
    small.write(f"{{points: {{other: {{seed: 3}}, {TAUGHT[1:]}, then: [bench, report]}}")
    assert main([*SWEEP, "--dry-run", "--only", "second"]) == 0, "what is checked needs no fitted teacher"
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[2:4]] == ["second", "first"]
    assert "when every point has ended: bench, report" in printed
    assert main(["fit", "--config", "small.yaml", f"{TEACHER}=first", "--dry-run"]) == 2
    assert f"{TEACHER}: 'first' is a point of the sweep, which `sweep` fits first" in capsys.readouterr().err
