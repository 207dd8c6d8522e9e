"""A sweep that evaluates its points: once each, again when something else is asked for, after failures and kills."""

from __future__ import annotations

import json
from pathlib import Path

from tests.sweeps.screen import Screen
from tests.sweeps.small_sweep import SmallSweep, drive

EVALUATION = "{num_samples: 4, probes: [held_out]}"


def test_points_are_evaluated_again_only_when_something_else_is_asked_for(tmp_path: Path) -> None:
    small = SmallSweep(tmp_path, "{seeds: [0, 1]}", evaluation=EVALUATION)
    codes, printed = drive((small, "on_a_terminal"), (small, "once"), (small, "measured_otherwise"))
    assert codes == [[0], [0], [0]], printed
    names = ["seed=0", "seed=1"]
    assert small.events("start") == small.events("end") == dict.fromkeys(names, 1)
    assert small.events("measured") == dict.fromkeys(names, 2), "by the first command and by the third"
    _, children = small.runs()
    logged = {run.info.run_name: run.data.metrics["eval/held_out/response_loss"] for run in children}
    assert sorted(logged) == names, "in the runs of the fits"
    for name in names:
        (result,) = json.loads((small.point(name) / "evaluation/results.json").read_text())["results"]
        assert result["rows"] == 2
        assert logged[name] == result["figures"]["response_loss"]["value"]

    screen = Screen()
    screen.feed((tmp_path / "terminal.txt").read_bytes().decode())
    for word in ("running", "evaluating", "2 of 2 points ended"):
        assert any(word in frame for frame in screen.frames), word
    title = "Held-out loss of all points"
    assert title in screen.text, "the final table"
    assert "points ended" not in screen.text, "the live table is gone"
    assert screen.cursor_shown


def test_an_evaluation_that_fails_or_is_killed_is_done_by_the_next_worker(tmp_path: Path) -> None:
    failing = SmallSweep(tmp_path / "failing", "{seeds: [0], retries: 1}", evaluation=EVALUATION)
    killed = SmallSweep(tmp_path / "killed", "{seeds: [0, 1]}", evaluation=EVALUATION)
    codes, printed = drive((failing, "without_a_model"), (killed, "killed_in_an_evaluation"))
    assert codes == [[1, 0], [-9, 0]], printed

    assert failing.events("start") == {"seed=0": 2}, "its model was gone, and is made again"
    assert failing.events("measure") == {"seed=0": 3}, "twice without a model, once with it"
    reason = "evaluation: the fit in 'runs/small/seed=0' is not finished"
    assert f"seed=0: to retry ({reason}" in printed
    assert f"error: 1 of 1 points failed; the same command tries them again.\nseed=0: {reason}" in printed
    assert "finished" in failing.table()

    assert killed.events("start") == {"seed=0": 1, "seed=1": 1}
    assert killed.events("measure") == {"seed=0": 2, "seed=1": 1}
    assert killed.events("measured") == {"seed=0": 1, "seed=1": 1}
