"""Sweeps as real processes: killed and resumed, shared by two workers, with points that fail, changed, pruned."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from tests.sweeps.small_sweep import SmallSweep, drive

from uniattn_pl.config import load_config

SIX = "{grid: {architecture.superblock_size: [2, 3], training.stage2.learning_rate: [1e-3, 2e-3, 3e-3]}}"
SIX_NAMES = [f"superblock_size={size},learning_rate=0.00{rate}" for size in (2, 3) for rate in (1, 2, 3)]


def test_a_sweep_killed_twice_runs_every_point_exactly_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = SmallSweep(tmp_path, SIX)
    (codes,), printed = drive((small, "killed_twice"))
    assert codes == [-9, -9, 0], printed

    assert small.events("end") == dict.fromkeys(SIX_NAMES, 1)
    assert small.events("start") == {**dict.fromkeys(SIX_NAMES, 1), SIX_NAMES[1]: 2}, "killed in it, and resumed"
    assert all(f"{name} " in small.table() for name in SIX_NAMES)
    assert small.table().count("finished") == 6

    parent, children = small.runs()
    assert parent.info.status == "FINISHED"
    assert sorted(run.info.run_name for run in children) == sorted(SIX_NAMES)
    assert {run.info.status for run in children} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert len({run.data.tags["uniattn_pl.plan"] for run in children}) == 2, "of those that calibrated nothing, too"
    points = json.loads(small.point("sweep/manifest.json").read_text())["points"]
    assert {run.data.tags["uniattn_pl.experiment"]: run.info.run_name for run in children} == {
        key: point["name"] for key, point in points.items()
    }
    losses = {run.info.run_name: run.data.metrics["final/response_loss"] for run in children}
    assert parent.data.metrics["sweep/best_response_loss"] == min(losses.values())
    best, *others = sorted(losses, key=lambda name: losses[name])
    assert f"* {best} " in small.table()
    tags = {run.info.run_name: run.data.tags for run in children}
    assert [tags[name]["uniattn_pl.rank_in_sweep"] for name in (best, *others)] == ["1", "2", "3", "4", "5", "6"]
    assert {name for name, one in tags.items() if one["uniattn_pl.best_of_sweep"] == "true"} == {best}
    assert {one["uniattn_pl.sweep"] for one in tags.values()} == {"small"}
    assert all(f"#/runs/{parent.info.run_id}" in one["mlflow.note.content"] for one in tags.values())
    (best_id,) = (run.info.run_id for run in children if run.info.run_name == best)
    assert f"[{best}](#/runs/{best_id})" in parent.data.tags["mlflow.note.content"]
    assert len({one["uniattn_pl.retained_cache"] for one in tags.values()}) == 2, "of those that took over a start, too"

    # points 2, 3 and 5, 6 began with what 1 and 4 had calibrated, 4 with the original's loss that 1 had measured
    assert printed.count("starts from the calibrated model of") == 4
    assert printed.count("takes the original's loss from") == 1
    logged = {frozenset({*run.data.metrics} - {"calibration/gap_closed"}) for run in children}  # where there is a gap
    assert len(logged) == 1, "what was reused is in every run"
    from uniattn_pl.training.fit import fit

    monkeypatch.chdir(tmp_path)
    alone = fit(
        load_config(
            [Path("small.yaml")],
            ["architecture.superblock_size=3", "training.stage2.learning_rate=3e-3", "name=alone", "sweep.grid={}"],
        )
    )
    for folder in ("initial", "final"):
        weights = [run / folder / "model.safetensors" for run in (small.point(SIX_NAMES[-1]), alone.run_folder)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), "as if nothing had been reused"
    assert alone.milestones[0].response_loss == children[0].data.metrics["original/response_loss"]


def test_sweeps_that_are_shared_changed_failing_terminated_pruned_and_taught(tmp_path: Path) -> None:
    shared = SmallSweep(tmp_path / "shared", "{seeds: [0, 1, 2]}")
    failing = SmallSweep(tmp_path / "failing", "{grid: {training.stage2.learning_rate: [1e38, 1e-3]}, retries: 1}")
    ended = SmallSweep(tmp_path / "ended", "{seeds: [5]}")
    points = "{good: {seed: 0}, bad: {training: {stage1: {learning_rate: 0}}}}"
    pruning = SmallSweep(tmp_path / "pruning", f"{{points: {points}, prune_after: 1}}")
    points = "{second: {training.distillation.teacher: first}, first: {architecture: {name: baseline}}}"
    taught = SmallSweep(
        tmp_path / "taught",
        f"{{points: {points}, max_steps: 1, then: [bench, report]}}",
        bench="{lengths: [16], rounds: 1, new_tokens: 2}",
    )
    codes, printed = drive(
        (shared, "two_workers"),
        (shared, "changed"),
        (failing, "once"),
        (ended, "terminated"),
        (pruning, "pruned"),
        (taught, "two_workers"),
        (taught, "once"),
    )
    assert codes == [[0, 0], [0], [1], [143, 0], [0], [0, 0], [0]], printed

    names = ["seed=0", "seed=1", "seed=2", "seed=9"]
    assert shared.events("start") == dict.fromkeys(names, 1)
    assert len(shared.workers()) == 3, "two at first, one for what was added"
    assert sorted(run.info.run_name for run in shared.runs()[1]) == names

    assert failing.events("start") == Counter({"learning_rate=1.0e+38": 2, "learning_rate=0.001": 1})
    assert "1 of 2 points failed" in printed
    assert "learning_rate=1.0e+38: the loss became nan" in printed
    assert (failing.point("learning_rate=0.001") / "final").is_dir()
    assert failing.runs()[0].info.status == "FAILED"

    assert ended.events("start") == {"seed=5": 2}
    (run,) = ended.runs()[1]
    assert run.info.status == "FINISHED"

    assert pruning.events("start") == {"good": 1, "bad": 1}
    assert "pruned" in pruning.table()
    assert not (pruning.point("bad") / "final").exists()

    ordered = [" ".join(event[:2]) for event in taught._events()]
    assert ordered == ["start first", "end first", "start second", "end second"]
    manifest = json.loads((taught.point("second") / "manifest.json").read_text())
    assert manifest["config"]["training"]["distillation"]["teacher"] == "runs/small/first"
    assert "teacher" in manifest["identity"]
    assert "  original  " in taught.table(), "what the models say to held-out rows"
    assert "serve --from runs/small/second" in taught.table(), "the cheaper one"
    assert printed.count("peaks measured") == 1, "by one worker, and not again"
    assert (taught.folder / "reports/small/report.html").is_file()
