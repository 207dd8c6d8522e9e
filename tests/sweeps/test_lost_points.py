"""Sweeps whose ledger vouches for what is not there any more, and for points of other rows."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.sweeps.small_sweep import SmallSweep, drive

EVALUATION = "{num_samples: 4, probes: [held_out]}"


def test_what_is_lost_is_told_and_done_again_and_other_rows_are_refused(tmp_path: Path) -> None:
    small = SmallSweep(tmp_path, "{seeds: [0, 1, 2]}", evaluation=EVALUATION)
    (codes,), printed = drive((small, "lost"))
    assert codes == [0, 0, 0, 0, 2, 0], printed

    missing, complete = printed.split("written to reports/small")[:2]
    gaps = [line.strip() for line in missing.splitlines() if line.endswith("-m uniattn_pl sweep --config small.yaml")]
    assert any(line.startswith("its run folder runs/small/seed=0 is gone: ") for line in gaps)
    assert any(line.startswith("no run: ") for line in gaps), "of seed=1"
    assert "seed=0: its run folder runs/small/seed=0 is gone; it is fitted again" in complete
    assert "seed=1: its MLflow run is deleted; it is fitted again" in complete
    assert "seed=2: its evaluation in runs/small/seed=2/evaluation is gone; it is evaluated again" in complete
    assert "\nmissing\n" not in complete.rpartition("Held-out loss of all points")[2], "in the second report"

    assert small.events("start") == {"seed=0": 2, "seed=1": 2, "seed=2": 1}
    assert small.events("measure") == {"seed=0": 2, "seed=1": 1, "seed=2": 2}
    log = (small.point("sweep") / "logs/seed=1.log").read_text()
    assert "is finished; nothing was run." in log
    assert "stage 2 (all parameters)" not in log.partition("is finished")[2]
    parent, children = small.runs()
    assert len({run.info.run_name: run for run in children}) == 3
    sent = next(run for run in children if run.info.run_name == "seed=1")
    assert sent.info.status == "FINISHED"
    assert sent.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {"final/response_loss", "eval/held_out/response_loss"} <= sent.data.metrics.keys()

    problems = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert any("point 'seed=0': the training rows changed: 8 of the 8 of 'rows.jsonl'" in line for line in problems)
    assert any("point 'seed=2': the held-out rows changed: 4 of the 4 of 'rows.jsonl'" in line for line in problems)
    best = next(line for line in printed.rpartition("the best")[2].splitlines() if line.startswith("generate "))
    folder = shlex.split(best)[shlex.split(best).index("--from") + 1]
    assert (tmp_path / folder / "final/model.safetensors").is_file()


def test_rows_exchanged_while_a_sweep_runs_are_not_mixed_into_it(tmp_path: Path) -> None:
    small = SmallSweep(tmp_path, "{grid: {data.max_length: [512, 600]}, retries: 0}")
    (codes,), printed = drive((small, "rows_exchanged_meanwhile"))
    assert codes == [1, 2], printed
    first, second = "max_length=512", "max_length=600"
    assert "1 of 2 points failed" in printed
    assert f"{second}: while the sweep ran, the training rows changed: 8 of the 8 of 'rows.jsonl'" in printed
    assert f"error: point '{second}': the training rows changed" in printed, "what they are compared with is back"
    assert f"error: point '{first}'" not in printed
