"""What `sweep` says before anything runs, and the process it runs a point in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from tests.sweeps.small_sweep import SmallSweep

from uniattn_pl.cli import main
from uniattn_pl.sweeps.child_process import reason, start, stop
from uniattn_pl.sweeps.locks import try_lock

ROOT = Path(__file__).parents[2]
SWEEP = ["sweep", "--config", "small.yaml"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallSweep:
    monkeypatch.chdir(tmp_path)
    return SmallSweep(tmp_path, "{}")


def test_a_dry_run_lists_the_points_and_starts_nothing(small: SmallSweep, capsys: pytest.CaptureFixture[str]) -> None:
    cla = "{architecture: {name: cla, num_superblocks: 1}}"
    small.write(f"{{points: {{wide: {{architecture.superblock_size: 4}}, cla: {cla}}}, seeds: [0, 7]}}")
    assert main([*SWEEP, "--dry-run"]) == 0
    title, columns, *rows, _, _, _ = capsys.readouterr().out.splitlines()
    assert title == "small: 4 points"
    assert columns.split() == ["point", "KV", "training", "memory", "state", "folder"]
    for row, (name, rate) in zip(
        rows,
        (
            ("wide,seed=0", "81.2%"),
            ("wide,seed=7", "81.2%"),
            ("cla,seed=0", "62.5%"),
            ("cla,seed=7", "62.5%"),
        ),
        strict=True,
    ):
        assert re.fullmatch(rf" +{name} +{rate} +[\d.]+ [KM]iB +new +runs/small/{name}", row), row
    assert not Path("runs").exists()


def test_every_problem_of_every_point_is_told_at_once(small: SmallSweep, capsys: pytest.CaptureFixture[str]) -> None:
    small.write("{grid: {training.batch_sise: [4, 8], training.micro_batch_size: [2, 3, much]}}")
    assert main(SWEEP) == 2
    problems = capsys.readouterr().err.splitlines()
    assert len(problems) == 3
    assert (
        "small.yaml:14: sweep.grid: unknown key 'training.batch_sise'. Did you mean 'training.batch_size'?"
        in problems[0]
    )
    assert "3 does not divide training.batch_size=4" in "".join(problems)
    assert "training.micro_batch_size: expected a whole number, got 'much'." in "".join(problems)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("sweep", "problem"),
    [
        ("{}", "the config has no sweep"),
        ("{grid: {seed: 1}}", "sweep.grid: 'seed' needs a list of values"),
        ("{grid: {name: [a, b]}}", "'name' is the same for all points"),
        ("{points: {a: {tracking.uri: x}}}", "'tracking.uri' is the same for all points"),
        ("{points: {sweep: {seed: 1}}}", "'sweep': a sweep's folder has other things of that name"),
        ("{points: {a/b: {seed: 1}}}", "'a/b': it names a folder"),
        ("{points: {a: 3}}", "'a' needs the keys it sets"),
        ("{points: {a: {seed: 1}, b: {seed: 1}}}", "the points 'a' and 'b' are the same experiment"),
        ("{grid: {seed: [1]}, seeds: [2]}", "given here and as sweep.grid's 'seed'"),
        ("{grid: {architecture.num_superblocks: [1, 9]}}", "point 'num_superblocks=9': "),
        ("{seeds: [0], storage: nonsense}", "sweep.storage 'nonsense' cannot be used"),
        ("{seeds: [0], grids: 3}", "unknown key 'sweep.grids'. Did you mean 'sweep.grid'?"),
    ],
)
def test_a_wrong_sweep_is_told(small: SmallSweep, capsys: pytest.CaptureFixture[str], sweep: str, problem: str) -> None:
    small.write(sweep)
    assert main(SWEEP) == 2
    assert problem in capsys.readouterr().err


def test_a_budget_bounds_both_stages_of_every_point(small: SmallSweep, capsys: pytest.CaptureFixture[str]) -> None:
    small.write("{grid: {training.stage2.max_steps: [1, 50]}}")
    assert main([*SWEEP, "--max-steps", "1"]) == 2
    assert "are the same experiment" in capsys.readouterr().err, "both were cut to one step"


@pytest.mark.parametrize(("name", "points"), [("sweep_superblocks", 7), ("sweep_size", 6)])
def test_the_papers_sweeps_are_shipped(
    name: str, points: int, small: SmallSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": "Count.", "input": f"to {n}", "output": "1 2 3"} for n in range(300)]
    (small.folder / "pmc_llama_instructions_1000.json").write_text(json.dumps(rows))
    monkeypatch.setenv("UNIATTN_PL_DATA", str(small.folder))
    assert main(["sweep", "--config", str(ROOT / f"experiments/smollm2/{name}.yaml"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f": {points} points" in printed
    # 12 of 30 layers keep no keys
    assert printed.count("80.0%") == (6 if name == "sweep_size" else 1)


def test_a_fit_is_a_process_that_holds_the_points_lock(small: SmallSweep) -> None:
    lock, log = small.folder / "claim.lock", small.folder / "logs/point.log"
    ours = try_lock(lock)
    assert ours is not None
    fit = start("fit", ["--config", "small.yaml", "training.stage2.learning_rat=1"], log, ours)
    os.close(ours)
    assert try_lock(lock) is None, "the fit has it"
    code = fit.wait()
    assert code == 2
    assert "unknown key 'training.stage2.learning_rat'" in reason(log, code)
    again = try_lock(lock)
    assert again is not None
    stopped = start("fit", ["--config", "small.yaml"], log, again)
    os.close(again)
    stop(stopped)
    assert stopped.poll() is not None
