"""What a sweep shows: a live table on a terminal, a line per event elsewhere, the table of all points at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from uniattn_pl.printed_commands import mlflow_ui
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.sweeps.point_state import PointState
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.tracking.final_table import TEXTS_TITLE, said_lines, use_commands
from uniattn_pl.tracking.fit_result import LABELS, ORIGINAL, FitResult
from uniattn_pl.tracking.journal import FILE, FOLDER, entries

UNKNOWN = "-"
ENDED = ("finished", "pruned", "failed")
FRAME = 6  # lines of a table besides its rows, and the one behind it


@dataclass
class PointProgress:
    """How far a running point's training is, read from its journal as it grows; the seconds are those of its stage."""

    folder: Path
    step: int | None = None
    loss: float | None = None
    seconds_left: float | None = None
    _offset: int = field(default=0, repr=False)

    def read(self) -> None:
        """Take in what is new."""
        path = self.folder / FOLDER / FILE
        if not path.exists():
            return
        for operation, end in entries(path, self._offset):
            self._offset = end
            match operation:
                case {"op": "metric", "key": "stage1/loss" | "stage2/loss", "step": step, "value": value}:
                    self.step, self.loss = step, value
                case {"op": "metric", "key": "stage1/seconds_left" | "stage2/seconds_left", "value": value}:
                    self.seconds_left = value


@dataclass(frozen=True)
class ViewRow:
    """One point in a table.

    Attributes:
        loss: the training loss while it runs, then the held-out response loss.
        seconds_left: that its stage still takes; None where nothing is trained now.
        place: where its run folder is, None when it is here.
    """

    name: str
    state: str
    step: int | None
    loss: float | None
    kv_rate: float | None
    seconds_left: float | None
    folder: Path
    place: str | None


class SweepView:
    """Shows the points of a sweep while they are worked on; a context manager.

    Args:
        points: in order.
        folders: key -> run folder.
        rates: key -> KV retain rate, where the plan is known before the fit.
        console: where to.
    """

    def __init__(
        self,
        points: Sequence[Point],
        folders: Mapping[str, Path],
        rates: Mapping[str, float | None],
        console: Console,
    ) -> None:
        self.names = {point.key: point.name for point in points}
        self.folders, self.rates, self.console = folders, rates, console
        self._progress = {key: PointProgress(folders[key]) for key in self.names}
        self._shown: dict[str, str] = {}
        self._live: Live | None = None

    def __enter__(self) -> SweepView:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, states: Mapping[str, PointState]) -> None:
        """Show the points as they are now."""
        rows = self.rows(states)
        done = sum(row.state in ENDED for row in rows)
        if self._live is not None:
            title = f"Sweep: {done} of {len(rows)} points ended"
            self._live.update(_table(self._fitting(rows), title, live=True), refresh=True)
            return
        for (key, state), row in zip(states.items(), rows, strict=True):
            previous = self._shown.get(key, "waiting")
            self._shown[key] = row.state
            if row.state != previous:
                self.tell(f"[{done}/{len(rows)}] {row.name}: {_event(row, state)}")

    def _fitting(self, rows: Sequence[ViewRow]) -> list[ViewRow]:
        """The rows that a terminal has room for: ended points are left out first, then those that have not begun."""
        urgent = sorted(rows, key=lambda row: (row.state in ENDED, row.state == "waiting"))
        kept = urgent[: max(1, self.console.height - FRAME)]
        return [row for row in rows if row in kept]

    def tell(self, line: str) -> None:
        """Print one line as it is, above the table."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def rows(self, states: Mapping[str, PointState]) -> list[ViewRow]:
        """Every point, in order."""
        return [self._row(key, state) for key, state in states.items()]

    def _row(self, key: str, state: PointState) -> ViewRow:
        progress, folder, result = self._progress[key], self.folders[key], result_of(self.folders[key])
        progress.read()
        step = progress.step if state.step is None else state.step
        loss = progress.loss if state.loss is None else state.loss
        word = "to retry" if state.state == "waiting" and state.failures else state.state
        rate = self.rates[key] if state.kv_rate is None else state.kv_rate
        if rate is None and result is not None:
            rate = result.cache.retain_rate
        seconds_left = progress.seconds_left if word == "running" else None
        place = None if result is not None else state.place
        return ViewRow(self.names[key], word, step, loss, rate, seconds_left, folder, place)


def result_of(folder: Path) -> FitResult | None:
    """The measurements of the fit in a folder; None before it is finished."""
    manifest = Manifest.read(folder)
    return manifest.result(folder, "") if manifest is not None and manifest.phase == "done" else None


def _event(row: ViewRow, state: PointState) -> str:
    if row.state == "finished":
        return f"finished, held-out loss {_number(row.loss)}, KV {_percent(row.kv_rate)}"
    if row.state in ("failed", "to retry"):
        return f"{row.state} ({state.error})"
    return row.state


def ranked(rows: Sequence[ViewRow]) -> list[ViewRow]:
    """The finished points, that of the least held-out loss first."""
    finished = [row for row in rows if row.state == "finished" and row.loss is not None and math.isfinite(row.loss)]
    return sorted(finished, key=lambda row: row.loss or 0.0)


def best_of(rows: Sequence[ViewRow]) -> ViewRow | None:
    """The finished point with the least held-out loss."""
    return next(iter(ranked(rows)), None)


def final_table(rows: Sequence[ViewRow]) -> Group:
    """All points, the best one marked, and what their models say to held-out rows."""
    table = _table(rows, "Held-out loss of all points (* the best)", best_of(rows))
    said = _answers({row.name: result for row in rows if (result := result_of(row.folder)) is not None})
    return Group(table, *([] if said is None else [said]))


def next_commands(rows: Sequence[ViewRow], tracking_uri: str, run_id: str | None) -> str:
    """The commands that go on from here: with the best of the cheaper points where there is one, else with the best.

    Args:
        run_id: of the sweep's run.
    """
    lines = [f"MLflow    {mlflow_ui(tracking_uri)}"]
    if run_id is not None:
        lines.append(f"          the points are under the run {run_id}")
    cheaper = best_of([row for row in rows if row.kv_rate is not None and row.kv_rate < 1])
    best = cheaper or best_of(rows)
    if best is None:
        return "\n".join(lines)
    what = "the best" if cheaper is None else f"the best with less than all of the KV cache ({_percent(best.kv_rate)})"
    if best.place is not None:
        return "\n".join([*lines, f"{what}: {best.name}, whose run is in {best.place}"])
    result = result_of(best.folder)
    used = [] if result is None else use_commands(result)
    return "\n".join([*lines, f"{what}: {best.name}", *used])


def _answers(results: Mapping[str, FitResult]) -> Text | None:
    """The held-out rows that all points were asked, and what each says to them; None where there are none."""
    with_texts = {name: result.texts for name, result in results.items() if result.texts}
    parts: list[Text] = []
    for texts in zip(*with_texts.values(), strict=False):
        if len({(text.number, text.asked) for text in texts}) > 1:
            break
        original = texts[0].said.get(ORIGINAL)
        first = {} if original is None else {LABELS[ORIGINAL]: original}
        of_points = {name: [*text.said.values()][-1] for name, text in zip(with_texts, texts, strict=True)}
        parts += said_lines(texts[0], {**first, **of_points})
    return Text("\n").join([Text(TEXTS_TITLE, style="italic"), *parts]) if parts else None


def _table(rows: Sequence[ViewRow], title: str, best: ViewRow | None = None, *, live: bool = False) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("point", overflow="fold")  # the one that gives way on a narrow terminal
    table.add_column("state", no_wrap=True)
    for name in ("step", "loss", "KV", *(["left"] if live else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        name = f"* {row.name}" if row is best else row.name
        step = UNKNOWN if row.step is None else str(row.step)
        cells = [
            row.state,
            step,
            _number(row.loss),
            _percent(row.kv_rate),
            *([_time(row.seconds_left)] if live else []),
        ]
        table.add_row(Text(name), *cells)
    return table


def _time(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else str(timedelta(seconds=round(seconds)))


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1%}"
