"""What the fits of a sweep's points would open, opened before the first of them starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uniattn_pl.config.sections.data_section import MADE, DataConfig
from uniattn_pl.config.source_paths import is_pattern
from uniattn_pl.errors import UserError
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.sweeps.teacher_points import before_its_teacher
from uniattn_pl.training.preflight import check_fit


def check_points(points: Sequence[Point]) -> list[str]:
    """Open what every point's fit would open; rows of the hub are read when the fits are.

    Returns:
        Why the models themselves could not be looked at, where that is so.

    Raises:
        UserError: with every problem, and the points that have it.
    """
    problems: dict[str, list[str]] = {}
    unopened: dict[str, None] = {}
    for point in points:
        try:
            found = check_fit(before_its_teacher(point), resumes=False, rows=_are_here(point.loaded.config.data))
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(point.name)
            continue
        if found.unopened is not None:
            unopened[found.unopened] = None
    if problems:
        raise UserError(*(_of(names, problem, len(points)) for problem, names in problems.items()))
    return list(unopened)


def _are_here(data: DataConfig) -> bool:
    sources = [source for source in (*data.training_sources, data.validation_source) if source is not None]
    found = [source in MADE or Path(source).exists() or is_pattern(source) for source in sources]
    return all(found)


def _of(names: Sequence[str], problem: str, points: int) -> str:
    """A problem with its points, where it is not that of all of them."""
    if len(names) == points:
        return problem
    return f"{'point' if len(names) == 1 else 'points'} {', '.join(map(repr, names))}: {problem}"
