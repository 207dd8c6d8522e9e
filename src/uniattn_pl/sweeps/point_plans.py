"""The plans of a sweep's points, as far as they are known: before their fits, or from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from uniattn_pl.config import LoadedConfig
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.dropping import check_drop
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.training.planning import check_positions, checked_shape, chosen_plan, compile_plan

PlanAndShape = tuple[LayerPlan, ModelShape]


def known_plans(points: Sequence[Point], folders: Mapping[str, Path]) -> dict[str, PlanAndShape | None]:
    """Key -> plan of each point and its model's shape; None where its fit has not chosen the layers yet.

    Args:
        folders: key -> run folder, where a fit that has chosen says so.

    Raises:
        UserError: with every point whose architecture does not fit its model, or has too few layers for
            evaluation.drop.
    """
    plans: dict[str, PlanAndShape | None] = {}
    problems: list[str] = []
    for point in points:
        try:
            plans[point.key] = _plan_if_known(point.loaded, folders[point.key])
        except UserError as error:
            problems += [f"point '{point.name}': {problem}" for problem in error.problems]
    if problems:
        raise UserError(*problems)
    return plans


def _plan_if_known(loaded: LoadedConfig, folder: Path) -> PlanAndShape | None:
    trainer = dataclasses.replace(loaded.config.trainer, default_root_dir=str(folder))
    placed = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, trainer=trainer))
    if loaded.architecture.measured and chosen_plan(placed) is None:
        check_positions(placed, checked_shape(placed))
        return None
    plan, shape = compile_plan(placed)
    check_positions(placed, shape)
    check_drop(plan, loaded.config.evaluation.drop)
    return plan, shape
