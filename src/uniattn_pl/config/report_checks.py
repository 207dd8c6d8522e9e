"""Checks of the `report` section: what its tables and figures refer to is there.

They are run with those of `config/checks.py`, which has the same form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.errors import did_you_mean

# figure of `analyze` -> its topic on the command line
ANALYSES = {
    "similarity_matrix": "similarity",
    "similarity_adjacent": "similarity",
    "head_matches": "similarity",
    "importance": "importance",
    "depth": "depth",
    "selection": "selection",
    "compensation": "compensation",
}
AXES = ("x", "y")


def _columns(config: ExperimentConfig) -> str | None:
    columns = config.report.columns
    problems = [problem for heading, value in columns.items() for problem in _column(str(heading), value, columns)]
    return " ".join(problems) or _circle(columns)


def _column(heading: str, value: Any, columns: Mapping[str, Any]) -> list[str]:
    if isinstance(value, str) and re.fullmatch(r"[^@\s]([^@]*[^@\s])?(@\d+)?", value):
        return []
    if isinstance(value, list) and value:
        return [
            f"'{heading}' is the mean of '{part}', which is no column.{did_you_mean(str(part), columns)}"
            for part in value
            if part not in columns
        ]
    return [f"'{heading}' needs a metric, METRIC@STEP with a whole number, or a list of other columns; got {value!r}."]


def _circle(columns: Mapping[str, Any]) -> str | None:
    """Name the first column whose mean includes itself, directly or through other columns; None without one."""

    def reaches(start: str, heading: str, visited: set[str]) -> bool:
        parts = columns[heading] if isinstance(columns[heading], list) else []
        fresh = [part for part in parts if part not in visited]
        return start in parts or any(reaches(start, part, visited | set(fresh)) for part in fresh)

    circular = next((heading for heading in columns if reaches(heading, heading, {heading})), None)
    return None if circular is None else f"'{circular}' is a mean of itself."


def _figures(config: ExperimentConfig) -> str | None:
    report = config.report
    problems = []
    for name, figure in report.figures.items():
        if not re.fullmatch(r"\w[\w.+=,-]*", str(name)):
            problems.append(f"'{name}' names a file: letters, digits and . _ + - = , only.")
        if name in report.analysis:
            problems.append(f"'{name}' is one of report.analysis too; choose another name.")
        problems += [f"'{name}' {problem}" for problem in _axes(figure, report.columns)]
    return " ".join(problems) or None


def _axes(figure: Any, columns: Mapping[str, Any]) -> list[str]:
    example = "for example {x: architecture.num_superblocks, y: [a column]}"
    if not isinstance(figure, dict):
        return [f"needs x and y, {example}; got {figure!r}."]
    problems = [f"has no '{key}'.{did_you_mean(str(key), AXES)} Allowed: x, y." for key in figure if key not in AXES]
    x, y = figure.get("x"), figure.get("y")
    if not isinstance(x, str) or not x:
        problems.append(f"needs x: a column, a config key, drop or h2o, {example}.")
    if not isinstance(y, list) or not y:
        problems.append(f"needs y: a list of columns, {example}.")
        return problems
    if columns:  # else they are what the runs have, which only the store knows
        unknown = [heading for heading in y if heading not in columns]
        problems += [f"shows '{one}' on y, which is no column.{did_you_mean(str(one), columns)}" for one in unknown]
    return problems


def _analysis(config: ExperimentConfig) -> str | None:
    unknown = [name for name in config.report.analysis if name not in ANALYSES]
    if not unknown:
        return None
    return (
        f"'{unknown[0]}' is no figure of analyze.{did_you_mean(unknown[0], ANALYSES)} Allowed: {', '.join(ANALYSES)}."
    )


REPORT_CHECKS: list[tuple[tuple[str, ...], Callable[[ExperimentConfig], str | None]]] = [
    (("report.columns",), _columns),
    (("report.figures", "report.columns", "report.analysis"), _figures),
    (("report.analysis",), _analysis),
]
