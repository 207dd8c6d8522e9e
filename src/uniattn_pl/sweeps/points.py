"""From the `sweep` section to points: each one an experiment that is checked before any of them starts."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniattn_pl.config import LoadedConfig, load_config
from uniattn_pl.config.interpolation import escape
from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.sweep_sections import SweepConfig
from uniattn_pl.config.yaml_documents import at
from uniattn_pl.config.yaml_scalars import dump_value
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.sweeps.teacher_points import with_teachers

LONGEST_NAME = 120


def is_sweep(config: ExperimentConfig) -> bool:
    """Whether a config has points of its own."""
    return bool(config.sweep.grid or config.sweep.points or config.sweep.seeds)


def load_points(files: Sequence[Path], overrides: Sequence[str], base: LoadedConfig) -> list[Point]:
    """Load and check every point of a sweep, in the order they are run.

    Args:
        files, overrides: what `base` was loaded from.

    Raises:
        UserError: there are no points, two are the same, or some cannot be run; with every problem of all of them.
    """
    sweep = base.config.sweep
    if not is_sweep(base.config):
        raise UserError(
            "the config has no sweep; give sweep.grid, sweep.points or sweep.seeds, for example "
            "'sweep.grid={architecture.num_superblocks: [1, 2, 4]}'."
        )
    settings = list(_settings(sweep))
    points: dict[str, Point] = {}
    problems: list[str] = []
    for setting in settings:
        try:
            point = _load(files, overrides, setting.name, list(setting.words), sweep.max_steps)
        except UserError as error:
            problems += [_place(problem, setting.words, base) for problem in error.problems]
            continue
        twin = points.setdefault(point.key, point)
        if twin is not point:
            problems.append(
                f"sweep: the points '{twin.name}' and '{setting.name}' are the same experiment; remove one."
            )
    if problems:
        raise UserError(*dict.fromkeys(problems))
    siblings = {
        setting.name: {other.label: other.name for other in settings if other.rest == setting.rest}
        for setting in settings
    }
    return with_teachers(list(points.values()), siblings, Path(base.config.trainer.default_root_dir))


def select_points(points: Sequence[Point], text: str) -> list[Point]:
    """Return the points that `text` names, separated by commas, and their teachers, in the order they are run.

    Raises:
        UserError: there are none of these names; with the nearest.
    """
    names = {point.name for point in points}
    words, chosen, problems = text.split(","), set(), []
    while words:
        # a name may have commas of its own, as superblock_size=2,seed=0
        lengths = range(len(words), 0, -1)
        length = next((length for length in lengths if ",".join(words[:length]) in names), None)
        if length is None:
            hint = did_you_mean(words[0], names) or f" There are: {', '.join(point.name for point in points)}."
            problems.append(f"--only: the sweep has no point '{words[0]}'.{hint}")
        else:
            chosen.add(",".join(words[:length]))
        words = words[length or 1 :]
    if problems:
        raise UserError(*problems)
    teachers = {point.teacher for point in points if point.name in chosen}
    return [point for point in points if point.name in chosen or point.key in teachers]


@dataclass(frozen=True)
class _Setting:
    """What the sweep sets in one point: name, overrides, and whether two points have the same grid values and seed.

    Attributes:
        label: of the named point.
        rest: what its grid values and its seed add to the label.
    """

    name: str
    words: tuple[str, ...]
    label: str
    rest: str


def _settings(sweep: SweepConfig) -> Iterator[_Setting]:
    """Those of every point: named ones x the grid x seeds."""
    short = _short_names(list(sweep.grid))
    axes = [[(key, value) for value in values] for key, values in sweep.grid.items()]
    axes.append([("seed", seed) for seed in sweep.seeds] or [("", None)])
    taken: set[str] = set()
    for (label, values), combination in itertools.product((sweep.points or {"": {}}).items(), itertools.product(*axes)):
        settings = [(key, value) for key, value in combination if key]
        rest = ",".join(f"{short.get(key, key)}={_text(value)}" for key, value in settings)
        name = _folder_name(",".join(part for part in (label, rest) if part), taken)
        taken.add(name)
        words = tuple(f"{key}={_word(value)}" for key, value in (*values.items(), *settings))
        yield _Setting(name, words, label, rest)


def _short_names(keys: list[str]) -> dict[str, str]:
    """The last part of each key, where no other key of the sweep ends with it."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 and end != "name" else key for key, end in zip(keys, ends, strict=True)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else dump_value(value)


def _word(value: Any) -> str:
    return dump_value(escape(value))


def _folder_name(text: str, taken: set[str]) -> str:
    """`text` with other characters than a run's name may have replaced, short, and not one of `taken`."""
    name = re.sub(r"[^\w.+=,-]+", "_", text).lstrip("_.+=,-") or "point"
    if len(name) > LONGEST_NAME or name in taken:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return name


def _load(files: Sequence[Path], overrides: Sequence[str], name: str, words: list[str], max_steps: int | None) -> Point:
    words = [*words, f"name={_word(name)}"]
    loaded = load_config(files, [*overrides, *words])
    budget = _budget(loaded, max_steps)
    if budget:
        words += budget
        loaded = load_config(files, [*overrides, *words])
    return Point(name, tuple(words), loaded)


def _budget(loaded: LoadedConfig, max_steps: int | None) -> list[str]:
    """Overrides that bound the steps of each stage."""
    training = loaded.config.training
    stages = (("stage1", training.stage1), ("stage2", training.stage2))
    return [
        f"training.{name}.max_steps={max_steps}"
        for name, stage in stages
        if max_steps is not None and (stage.max_steps is None or stage.max_steps > max_steps)
    ]


def _place(problem: str, words: Sequence[str], base: LoadedConfig) -> str:
    """The problem, with where the sweep was written in the place of the overrides it was turned into."""
    for word in words:
        key = word.partition("=")[0]
        section = "grid" if key in base.config.sweep.grid else "seeds" if key == "seed" else "points"
        place = f"{at(base.provenance[f'sweep.{section}'])}sweep.{section}"
        problem = problem.replace(f"override '{word}'", place)
        problem = problem.replace(f"{place}, {place}", place)
    return problem
