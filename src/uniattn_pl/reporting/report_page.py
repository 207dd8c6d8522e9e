"""The report as one HTML file: a table that sorts, the rows over what they cost, an answer for a budget.

It loads nothing, so that it opens from a file system and among MLflow's artifacts; what draws it is in
`report_page.html` beside this file. A library of charts would bring megabytes into every report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from uniattn_pl.display.figure_style import PALETTE
from uniattn_pl.plan.roles import MIXED
from uniattn_pl.reporting.cells import BEST, SECOND, Cell, Table
from uniattn_pl.reporting.columns import COST, Column
from uniattn_pl.reporting.document import Report
from uniattn_pl.reporting.report_rows import ReportRow
from uniattn_pl.reporting.shown_values import figure_context

TEMPLATE = Path(__file__).with_name("report_page.html")
MARKS = {BEST: "first", SECOND: "second"}
LONGEST_PLAN = 40  # lines of a plan that are shown


def report_page(report: Report, plans: Mapping[str, str]) -> str:
    """The page of a report.

    Args:
        plans: name of a row -> its plan, drawn.
    """
    table = report.table
    parts = {
        "title": escape(report.title),
        "about": escape(" · ".join(part for part in figure_context(table) if part)),
        "table": _table(report),
        "notes": f'<p class="soft">Made by <code>{escape(report.made_by)}</code></p>',
        "data": _json({"columns": [*map(_column, table.columns)], "rows": _rows(table, plans)}),
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    before, *pieces = page.split("{{")  # one pass: what a user has named may have braces
    return before + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces))


def _json(data: Any) -> str:
    """JSON that ends no element of a page."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _column(column: Column) -> dict[str, Any]:
    unit = column.unit
    is_cost = unit.better < 0 and all(one.metric.startswith(COST) for one in column.measured)
    axis = f"{column.heading} ({unit.name})" if unit.name and "(" not in column.heading else column.heading
    return {
        "heading": column.heading,
        "axis": axis,
        "unit": unit.name,
        "better": unit.better,
        "cost": is_cost,
        "quality": column.is_quality,
    }


def _rows(table: Table, plans: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "name": row.name,
            "modified": row.modified,
            "color": _color(row),
            "plan": "\n".join(plans.get(row.name, "").splitlines()[:LONGEST_PLAN]),
            "values": [_value(cell) for cell in cells],
            "texts": [cell.text for cell in cells],
            "bars": [_bar(cell) for cell in cells],
        }
        for row, cells in zip(table.rows, table.cells, strict=True)
    ]


def _value(cell: Cell) -> float | None:
    return None if cell.mean is None or not abs(cell.mean) < float("inf") else cell.mean * cell.column.unit.scale


def _bar(cell: Cell) -> list[float] | None:
    """The deviation over seeds, else the 95 % interval."""
    value, scale = _value(cell), cell.column.unit.scale
    if value is not None and cell.spread:
        return [value - scale * cell.spread, value + scale * cell.spread]
    return None if value is None or cell.interval is None else [scale * bound for bound in cell.interval]


def _color(row: ReportRow) -> str:
    return PALETTE.get(row.mechanism, PALETTE[MIXED])


def _table(report: Report) -> str:
    """The table, which needs no script to be read."""
    table = report.table
    head = "".join(f"<th>{escape(heading)}</th>" for heading in ("", *(column.heading for column in table.columns)))
    lines = [f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>"]
    for row, cells, marks in zip(table.rows, table.cells, table.marks(), strict=True):
        shown = "".join(_cell(cell, mark) for cell, mark in zip(cells, marks, strict=True))
        lines.append(f"<tr><td>{_name(row, report)}</td>{shown}</tr>")
    return "\n".join([*lines, "</tbody>\n</table>"])


def _cell(cell: Cell, mark: int) -> str:
    style = f' class="{MARKS[mark]}"' if mark in MARKS else ""
    return f"<td{style}>{escape(cell.text)}</td>"


def _name(row: ReportRow, report: Report) -> str:
    """The row's name behind a dot of its colour, with a link to its run."""
    color, name = _color(row), escape(row.name)
    fill = f"background:{color};" if row.modified else ""
    dot = f'<span class="dot" style="{fill}border-color:{color}" title="{escape(row.mechanism)}"></span>'
    runs = [member.run for member in row.members if member.run is not None]
    link = f'<a href="{escape(report.links.run(runs[0].info.run_id))}">{name}</a>' if runs else name
    return dot + link
