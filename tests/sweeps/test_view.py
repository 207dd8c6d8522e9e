"""What a sweep shows while it runs: a table on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tests.sweeps.screen import Screen
from tests.sweeps.small_sweep import SmallSweep

from uniattn_pl.config import load_config
from uniattn_pl.sweeps.jobs import EVALUATE, jobs_of, joined
from uniattn_pl.sweeps.point_state import PointState
from uniattn_pl.sweeps.points import load_points
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.sweeps.view import SweepView
from uniattn_pl.tracking.journal import Journal

EVALUATION = "{num_samples: 4, probes: [held_out]}"
WAITING, RUNNING, LOST = PointState("waiting"), PointState("running"), PointState("failed")
FINISHED = PointState("finished", loss=1.25, step=12, kv_rate=0.8)

Points = Callable[[str], list[Point]]


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Points:
    monkeypatch.chdir(tmp_path)

    def of(sweep: str) -> list[Point]:
        SmallSweep(tmp_path, sweep, evaluation=EVALUATION)
        return load_points([Path("small.yaml")], [], load_config([Path("small.yaml")]))

    return of


class Watched:
    """A view of points, the states of which are given by those of their fits and evaluations, and what is seen."""

    def __init__(self, points: list[Point], folder: Path, *, terminal: bool = True, height: int = 40) -> None:
        self.points = points
        self.folders = {point.key: folder / "runs" / point.name for point in points}
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=terminal, width=80, height=height)
        self.view = SweepView(points, self.folders, {point.key: 0.75 for point in points}, self.console)

    def update(self, *fits: PointState, **evaluations: PointState) -> Screen:
        """Show these states, of the evaluations those of points by name; returns the screen."""
        states = {point.key: fit for point, fit in zip(self.points, fits, strict=True)}
        jobs = jobs_of(self.points)
        states |= {key: evaluations.get(job.point.name, LOST) for key, job in jobs.items() if job.command == EVALUATE}
        self.view.update(joined(jobs, states))
        return self.screen()

    def screen(self) -> Screen:
        screen = Screen()
        screen.feed(self.file.getvalue())
        return screen


def cells(screen: Screen) -> list[list[str]]:
    """The rows of the table on the screen."""
    rows = [line for line in screen.text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in rows]


def test_the_table_grows_with_the_journals_and_leaves_nothing_behind(points: Points, tmp_path: Path) -> None:
    watched = Watched(points("{points: {a: {seed: 1}, b: {seed: 2}, c: {seed: 3}}}"), tmp_path)
    journal = Journal(watched.folders[watched.points[0].key], fit_id="f", name="a")
    with watched.view:
        screen = watched.update(RUNNING, WAITING, WAITING)
        assert not screen.cursor_shown
        assert "Sweep: 0 of 3 points ended" in screen.text
        assert cells(screen) == [
            ["a", "running", "-", "-", "75.0%", "-"],
            ["b", "waiting", "-", "-", "75.0%", "-"],
            ["c", "waiting", "-", "-", "75.0%", "-"],
        ]
        journal.metrics({"stage1/loss": 2.5, "stage1/seconds_left": 4000.2}, 3)
        assert cells(watched.update(RUNNING, WAITING, WAITING))[0] == [
            "a",
            "running",
            "3",
            "2.5000",
            "75.0%",
            "1:06:40",
        ]
        journal.metrics({"stage2/loss": 2.25, "stage2/seconds_left": 7.0}, 9)
        assert cells(watched.update(RUNNING, WAITING, WAITING))[0] == [
            "a",
            "running",
            "9",
            "2.2500",
            "75.0%",
            "0:00:07",
        ]

        watched.view.tell("b starts from the calibrated model of a")
        screen = watched.update(FINISHED, RUNNING, PointState("failed", error="no disk", failures=2), a=RUNNING)
        assert screen.text.startswith("b starts from the calibrated model of a\n"), "above the table"
        assert "Sweep: 1 of 3 points ended" in screen.text
        assert cells(screen) == [
            ["a", "evaluating", "12", "1.2500", "80.0%", "-"],
            ["b", "running", "-", "-", "75.0%", "-"],
            ["c", "failed", "-", "-", "75.0%", "-"],
        ]
        retried = PointState("waiting", error="no disk", failures=1)
        screen = watched.update(FINISHED, retried, FINISHED, a=FINISHED, c=retried)
        assert [row[1] for row in cells(screen)] == ["finished", "to retry", "to retry"]
        assert [row[1] for row in cells(watched.update(FINISHED, FINISHED, RUNNING))][:2] == ["to evaluate"] * 2
    screen = watched.screen()
    assert screen.text == "b starts from the calibrated model of a"
    assert screen.cursor_shown


def test_an_error_leaves_a_clean_terminal_too(points: Points, tmp_path: Path) -> None:
    watched = Watched(points("{seeds: [0]}"), tmp_path)

    def interrupted() -> None:
        with watched.view:
            assert watched.update(RUNNING).text
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert watched.screen().text == ""
    assert watched.screen().cursor_shown


def test_long_names_give_way_to_figures_on_80_columns(points: Points, tmp_path: Path) -> None:
    grid = (
        "{architecture.superblock_size: [3], training.stage2.learning_rate: [0.001, 0.00025], data.max_length: [512]}"
    )
    watched = Watched(points(f"{{grid: {grid}, seeds: [100]}}"), tmp_path)
    journal = Journal(watched.folders[watched.points[0].key], fit_id="f", name="a")
    journal.metrics({"stage1/loss": 12.3456, "stage1/seconds_left": 40000.0}, 123456)
    with watched.view:
        screen = watched.update(RUNNING, FINISHED)
    frame = watched.screen().frames[-1]
    assert max(map(len, frame.splitlines())) <= 80
    rows = [row for row in cells(screen) if row[1]]
    assert [row[1:] for row in rows] == [
        ["running", "123456", "12.3456", "75.0%", "11:06:40"],
        ["to evaluate", "12", "1.2500", "80.0%", "-"],
    ]
    names = "".join(row[0] for row in cells(screen))
    assert names == "".join(point.name for point in watched.points), "whole, over several lines"


def test_what_runs_is_seen_on_a_low_terminal(points: Points, tmp_path: Path) -> None:
    watched = Watched(points(f"{{seeds: {list(range(30))}}}"), tmp_path, height=12)
    with watched.view:
        screen = watched.update(
            *[FINISHED] * 20, *[RUNNING] * 2, *[WAITING] * 8, **{f"seed={n}": FINISHED for n in range(20)}
        )
    assert "Sweep: 20 of 30 points ended" in screen.text
    assert [row[0] for row in cells(screen)] == [f"seed={n}" for n in range(20, 26)]
    assert len(screen.text.splitlines()) < 12


def test_a_line_for_each_event_without_a_terminal(points: Points, tmp_path: Path) -> None:
    watched = Watched(points("{points: {a: {seed: 1}}}"), tmp_path, terminal=False)
    failed = PointState("waiting", error="no disk", failures=1)
    with watched.view:
        for fit, evaluation in (
            (WAITING, LOST),
            (RUNNING, LOST),
            (RUNNING, LOST),
            (failed, LOST),
            (RUNNING, LOST),
            (FINISHED, RUNNING),
            (FINISHED, failed),
            (FINISHED, RUNNING),
            (FINISHED, PointState("failed", error="no disk", failures=2)),
        ):
            watched.update(fit, a=evaluation)
    lines = watched.file.getvalue().splitlines()
    assert [re.sub(r"^\[(\d)/1\] a: ", r"\1 ", line) for line in lines] == [
        "0 running",
        "0 to retry (no disk)",
        "0 running",
        "0 evaluating",
        "0 to retry (evaluation: no disk)",
        "0 evaluating",
        "1 failed (evaluation: no disk)",
    ]
