"""Points that learn from another point of their sweep: the teacher is fitted first, its folder stands for its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.interpolation import escape
from uniattn_pl.config.sections.distillation_section import ORIGINAL
from uniattn_pl.config.yaml_scalars import dump_value
from uniattn_pl.errors import UserError
from uniattn_pl.sweeps.sweep_folder import SweepFolder
from uniattn_pl.sweeps.sweep_point import Point

KEY = "training.distillation.teacher"


def with_teachers(points: Sequence[Point], siblings: Mapping[str, Mapping[str, str]], root: Path) -> list[Point]:
    """The points in their order; where one names another as its teacher, that one's run folder takes the place of it.

    A point is its config: with the folder of another teacher it is another point.

    Args:
        siblings: name of a point -> label in `sweep.points` -> the point of that label with the same grid and seed.
        root: the sweep's folder.

    Raises:
        UserError: with each point whose teacher is itself, or learns from a further point.
    """
    by_name = {point.name: point for point in points}
    teachers = {point.name: _teacher(point, siblings.get(point.name, {})) for point in points}
    problems = []
    for name, teacher in teachers.items():
        if teacher == name:
            problems.append(f"point '{name}': {KEY} is the point itself; name another, or {ORIGINAL}.")
        elif teacher is not None and teachers.get(teacher) is not None:
            problems.append(f"point '{name}': its teacher '{teacher}' learns from a point, too; one of them must not.")
    if problems:
        raise UserError(*problems)
    folders = SweepFolder(root).planned(
        [by_name[name] for name in dict.fromkeys(teachers.values()) if name is not None]
    )
    taught = {name: _taught(by_name[name], by_name[teacher], folders) for name, teacher in teachers.items() if teacher}
    return [taught.get(point.name, point) for point in points]


def before_its_teacher(point: Point) -> LoadedConfig:
    """The experiment as it can be checked: while its teacher is not fitted, as if it learned from the original."""
    teacher = point.loaded.config.training.distillation.teacher
    if point.teacher is None or teacher is None or Path(teacher).is_dir():
        return point.loaded
    return _learning_from(point.loaded, ORIGINAL)


def _teacher(point: Point, siblings: Mapping[str, str]) -> str | None:
    """The name of the point that this one learns from."""
    teacher = point.loaded.config.training.distillation.teacher
    return None if teacher is None else siblings.get(teacher)


def _taught(point: Point, teacher: Point, folders: Mapping[str, Path]) -> Point:
    folder = str(folders[teacher.key])
    others = [word for word in point.words if word.partition("=")[0] != KEY]
    words = (*others, f"{KEY}={dump_value(escape(folder))}")
    return Point(point.name, words, _learning_from(point.loaded, folder), teacher.key)


def _learning_from(loaded: LoadedConfig, teacher: str) -> LoadedConfig:
    training = loaded.config.training
    distillation = dataclasses.replace(training.distillation, teacher=teacher)
    config = dataclasses.replace(loaded.config, training=dataclasses.replace(training, distillation=distillation))
    return dataclasses.replace(loaded, config=config)
