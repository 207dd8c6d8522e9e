"""The report as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from uniattn_pl.printed_commands import mlflow_page
from uniattn_pl.reporting.cells import BEST, MISSING, SECOND, Cell, Table
from uniattn_pl.reporting.columns import ACCURACY, Column
from uniattn_pl.reporting.gaps import Gap
from uniattn_pl.reporting.report_rows import Member

LOCAL_UI = "http://127.0.0.1:5000"  # where `make ui` serves
TRAINING = "workflowType=machine_learning"  # MLflow 3 shows its pages for chat applications otherwise


@dataclass(frozen=True)
class Links:
    """Addresses of runs in MLflow's pages."""

    base: str
    experiment_id: str
    view: str | None = None  # key of a shared view of the runs

    @classmethod
    def to(cls, tracking_uri: str, experiment_id: str, view: str | None = None) -> Links:
        """The addresses on a server, else those of the local user interface."""
        parts = urlsplit(tracking_uri)
        if parts.scheme not in ("http", "https"):
            return cls(LOCAL_UI, experiment_id, view)
        return cls(mlflow_page(tracking_uri), experiment_id, view)

    def run(self, run_id: str) -> str:
        return f"{self.runs}/{run_id}?{TRAINING}"

    @property
    def experiment(self) -> str:
        """The table of all runs."""
        return f"{self.runs}?{TRAINING}"

    @property
    def runs(self) -> str:
        return f"{self.base}/#/experiments/{self.experiment_id}/runs"

    def comparison(self, run_ids: Sequence[str]) -> str:
        """These runs side by side: the shared view where there is one, final loss over cost, else MLflow's own page."""
        if self.view is not None:
            return f"{self.experiment}&compareRunsMode=CHART&viewStateShareKey={self.view}"
        runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (run_ids, [self.experiment_id]))
        return f"{self.base}/#/compare-runs?runs={runs}&experiments={experiments}&{TRAINING}"


@dataclass(frozen=True)
class Report:
    """The contents of a report.

    Attributes:
        made_by: the command.
        stock: heading -> cost of the model without this package.
        figures, analyses: names of the images beside the report.
        sweep_run: id of the sweep's run.
    """

    title: str
    made_by: str
    table: Table
    links: Links
    gaps: list[Gap]
    stock: dict[str, str] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)
    analyses: dict[str, str] = field(default_factory=dict)
    sweep_run: str | None = None

    @property
    def run_ids(self) -> list[str]:
        """Those of the rows, each once: variants are of the same run."""
        members = (member for row in self.table.rows for member in row.members)
        return list(dict.fromkeys(member.run.info.run_id for member in members if member.run is not None))


def summary(report: Report) -> str:
    """The table and what one must know to read it."""
    return "\n\n".join([f"# {_text(report.title)}", "\n".join(_table(report)), *_notes(report)])


def markdown(report: Report) -> str:
    """The whole report."""
    table = report.table
    parts = [summary(report)]
    if _with_intervals(table):
        parts += ["## 95 % intervals", "\n".join(_intervals(table))]
    for heading, images in (("Figures", report.figures), ("Analysis", report.analyses)):
        if images:
            parts += [f"## {heading}", *(f"![{name}]({name}.png)\n\n{caption}" for name, caption in images.items())]
    if report.gaps:
        parts += ["## Missing", *map(_gap, report.gaps)]
    parts.append(f"Made by `{report.made_by}`")
    return "\n\n".join(parts) + "\n"


def _table(report: Report) -> list[str]:
    table = report.table
    seeds = ["seeds"] if table.has_seeds else []
    lines = [
        _line(["", *seeds, *(_text(column.heading) for column in table.columns)]),
        _line([":--", *["--:"] * (len(seeds) + len(table.columns))]),
    ]
    for row, cells, marks in zip(table.rows, table.cells, table.marks(), strict=True):
        runs = [member for member in row.members if member.run is not None]
        name = _link(_text(row.name), runs[0], report.links) if runs else _text(row.name)
        if seeds:
            seeds = [", ".join(_link(str(m.seed), m, report.links) for m in runs) or MISSING]
        lines.append(_line([name, *seeds, *(_marked(c, mark) for c, mark in zip(cells, marks, strict=True))]))
    return lines


def _marked(cell: Cell, mark: int) -> str:
    number = {BEST: f"**{cell.number}**", SECOND: f"<u>{cell.number}</u>"}.get(mark, cell.number)
    return number + cell.rest


def _link(text: str, member: Member, links: Links) -> str:
    return text if member.run is None else f"[{text}]({links.run(member.run.info.run_id)})"


def _notes(report: Report) -> list[str]:
    """What one must know to read the table, one paragraph each."""
    table, notes = report.table, []
    if any(column.unit is ACCURACY for column in table.columns):
        notes.append("Accuracies are in %.")
    if any(mark for marks in table.marks() for mark in marks):
        notes.append("**Bold** and <u>underlined</u>: the best and the second best of the rows that change the model.")
    if table.has_seeds:
        notes.append(
            "±: sample standard deviation over the seeds of a row; n: how many have a value, where not all do."
        )
    prompts = [note for column in table.columns if (note := _prompt(column, table.column(column.heading)))]
    if prompts:
        notes.append(f"Length of the prompt, in tokens: {'; '.join(prompts)}.")
    if report.stock:
        costs = ", ".join(f"{_text(heading)} {value}" for heading, value in report.stock.items())
        notes.append(f"The stock model, without this package: {costs}.")
    if report.sweep_run is not None:
        notes.append(f"The sweep in MLflow: {report.links.run(report.sweep_run)}")
    if len(report.run_ids) > 1:
        notes.append(f"All rows side by side in MLflow: {report.links.comparison(report.run_ids)}")
    return notes


def _prompt(column: Column, cells: Sequence[Cell]) -> str:
    """At which lengths a column of costs was measured: rows of different lengths cannot be compared."""
    steps = sorted({step for cell in cells for step in cell.steps})
    return f"{_text(column.heading)} {' and '.join(f'{step:,}' for step in steps)}" if steps else ""


def _with_intervals(table: Table) -> list[Column]:
    return [column for column in table.columns if any(cell.interval for cell in table.column(column.heading))]


def _intervals(table: Table) -> list[str]:
    """Beside every value its interval; in the table itself they would hide what is compared."""
    columns = _with_intervals(table)
    lines = [_line(["", *(_text(column.heading) for column in columns)]), _line([":--", *["--:"] * len(columns)])]
    for index, row in enumerate(table.rows):
        cells = [table.column(column.heading)[index] for column in columns]
        if any(cell.interval for cell in cells):
            lines.append(_line([_text(row.name), *map(_with_interval, cells)]))
    return lines


def _with_interval(cell: Cell) -> str:
    if cell.interval is None:
        return cell.text
    low, high = (cell.column.unit.write(bound, cell.mean or bound) for bound in cell.interval)
    return f"{cell.text} [{low}, {high}]"


def _gap(gap: Gap) -> str:
    command = f": `{gap.command}`" if gap.command else ""
    return "\n".join([f"- {gap.reason}{command}", *(f"  - {_text(cells)}" for cells in gap.cells)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """A user's words inside a line of Markdown."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")


def csv_text(table: Table) -> str:
    """Every value as it was logged, means and spreads as they are computed; an empty field is a missing one."""
    further = {column.heading: _further(table.column(column.heading)) for column in table.columns}
    header = ["row", "architecture", "n", "runs"]
    for column in table.columns:
        header += [column.heading, *(f"{column.heading} {name}" for name in further[column.heading])]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row, cells in zip(table.rows, table.cells, strict=True):
        runs = [member.run.info.run_id for member in row.members if member.run is not None]
        fields = [row.name, row.architecture, str(len(runs)), " ".join(runs)]
        for cell in cells:
            values = {
                "n": len(cell.values) or None,
                "sd": cell.spread,
                "low": cell.interval[0] if cell.interval else None,
                "high": cell.interval[1] if cell.interval else None,
            }
            shown = [cell.mean, *(values[name] for name in further[cell.column.heading])]
            fields += ["" if value is None else repr(value) for value in shown]
        writer.writerow(fields)
    return buffer.getvalue()


def _further(cells: Sequence[Cell]) -> list[str]:
    """Names of the fields that the CSV has of a column besides its values."""
    spread = ["sd", "n"] if any(cell.spread is not None for cell in cells) else []
    return spread + (["low", "high"] if any(cell.interval for cell in cells) else [])
