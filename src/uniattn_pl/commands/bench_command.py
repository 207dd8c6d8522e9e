"""`bench`: what architectures cost at inference, measured."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.commands.arguments import Parser, add_config_arguments, load
from uniattn_pl.config import LoadedConfig, load_config
from uniattn_pl.display.notices import tell_once
from uniattn_pl.errors import UserError
from uniattn_pl.families.positions import beyond_positions
from uniattn_pl.plan import LayerPlan
from uniattn_pl.run_folder import check_run_folder
from uniattn_pl.tracking.tags import BASELINE, STOCK, drop_variant
from uniattn_pl.training.planning import compile_plan

if TYPE_CHECKING:
    from uniattn_pl.sweeps.sweep_point import Point

DESCRIPTION = """\
Measures time to first token, time per further token, peak memory and cache bytes of an experiment's architecture,
interleaved in one process with the stock model, the same model under this package's kernels (baseline), the
architectures of bench.beside, and the bound: the same layers without attention. Of a config with a `sweep` section
the plans of all points are measured instead, without bounds. Weights do not matter to cost, so nothing is trained; a
plan that is chosen by measurement is that of its fit."""
REFERENCES = (STOCK, BASELINE)
SHOWS_TABLES = True
EXAMPLE = """\
  uniattn-pl bench --config experiments/smollm2/bench.yaml
  uniattn-pl bench --config exp.yaml bench.lengths=[1024] bench.rounds=3
  uniattn-pl bench --config experiments/smollm2/sweep_superblocks.yaml"""
EXTRA = "training"


def add_arguments(parser: Parser) -> None:
    """Add the options of `bench`."""
    add_config_arguments(parser, dry_run=True)


def run(arguments: argparse.Namespace) -> int:
    """Check every architecture, then measure them all."""
    loaded = load(arguments)
    if arguments.print_config:
        print(loaded.to_yaml(), end="")
        return 0
    check_run_folder(Path(loaded.config.trainer.default_root_dir))
    from uniattn_pl.sweeps.points import is_sweep, load_points

    bench, of_points = loaded.config.bench, is_sweep(loaded.config)
    points = load_points(arguments.config, arguments.overrides, loaded) if of_points else []
    measured = _points_of(loaded, points) if of_points else Plans(_plans(loaded))
    from uniattn_pl.inference.bench_memory import check_room
    from uniattn_pl.inference.device import trainer_device
    from uniattn_pl.kernels.kernel_presence import check_kernel
    from uniattn_pl.kernels.triton_maps.availability import check_reuse_mode
    from uniattn_pl.modeling.loading.pretrained import load_shape
    from uniattn_pl.training.experiment import model_origin

    device = trainer_device(loaded.config)
    for name in bench.backends:
        check_kernel(name, device=device)
    check_reuse_mode(loaded.config.model.reuse, device)
    shape = load_shape(loaded.config.model.source, **model_origin(loaded))
    try:
        check_room(loaded.config, shape, device)
    except UserError as error:
        if not arguments.dry_run:
            raise
        tell_once(f"On this machine, as it is now, it would not start: {error}")
    beyond = beyond_positions("bench.lengths", max(bench.lengths), shape.positions)
    if beyond:
        tell_once(f"{beyond} Times and bytes are those of longer texts all the same.")
    if arguments.dry_run:
        print(
            f"dry run: would measure {', '.join([*REFERENCES, *measured.plans])} on {loaded.config.model.source} at "
            f"{', '.join(map(str, bench.lengths))} tokens, batch {', '.join(map(str, bench.batch_sizes))}, "
            f"{', '.join(bench.backends)}, {bench.rounds} rounds."
        )
        return 0
    from uniattn_pl.inference.run_benchmark import run_benchmark

    run_benchmark(loaded, measured.plans, variants=measured.variants, bounds=not of_points)
    return 0


@dataclass(frozen=True)
class Plans:
    """The plans that are measured besides the references.

    Attributes:
        plans: label -> plan.
        variants: label of a plan that goes beyond a fit's -> the fit's plan, and what the variant is called.
    """

    plans: dict[str, LayerPlan]
    variants: dict[str, tuple[LayerPlan, str]] = field(default_factory=dict)


def _points_of(loaded: LoadedConfig, points: Sequence[Point]) -> Plans:
    """The plans of a sweep's points, each once, and those of evaluation.drop: which layers go does not matter to cost.

    Raises:
        UserError: with the problems of all points; bench.beside is set as well.
    """
    from uniattn_pl.sweeps.point_plans import known_plans
    from uniattn_pl.sweeps.sweep_folder import SweepFolder

    if loaded.config.bench.beside:
        raise UserError("bench.beside: a config with a sweep is measured with its points alone; remove one of them.")
    folders = SweepFolder(Path(loaded.config.trainer.default_root_dir)).planned(points)
    plans, measured = known_plans(points, folders), Plans({})
    for point in points:
        plan_and_shape = plans[point.key]
        if plan_and_shape is None:
            print(f"left out: {point.name}, whose layers are chosen when its fit starts; run the sweep first.")
            continue
        plan, _ = plan_and_shape
        if plan.operated and plan not in measured.plans.values():
            measured.plans[point.name] = plan
            _add_dropped(measured, point.name, plan, point.loaded.config.evaluation.drop)
    return measured


def _add_dropped(measured: Plans, name: str, plan: LayerPlan, counts: Sequence[int]) -> None:
    for count in counts:
        label = f"{name} {drop_variant(count)}"
        measured.plans[label] = plan.drop_reuse(plan.reusing[-count:], compensated=False)
        measured.variants[label] = plan, drop_variant(count)


def _plans(loaded: LoadedConfig) -> dict[str, LayerPlan]:
    """Label -> plan of this experiment and of those beside it, on this experiment's model.

    Raises:
        UserError: with the problems of all of them.
    """
    from uniattn_pl.families.encoder_decoder import decoders_alone

    plans: dict[str, LayerPlan] = {}
    problems: list[str] = []
    for file in (None, *loaded.config.bench.beside):
        try:
            one = loaded if file is None else _on_model_of(loaded, load_config([file]))
            label = one.architecture.name if file is None else Path(file).stem
            plan, shape = compile_plan(one)
            if shape.encoder is not None:
                raise UserError(decoders_alone("bench", shape.model_type))
            if not plan.operated:
                continue  # the baseline is measured anyway
            if label in (*plans, *REFERENCES):
                problems.append(f"bench.beside: '{file}' would be measured as '{label}', which is taken; rename it.")
            else:
                plans[label] = plan
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return plans


def _on_model_of(loaded: LoadedConfig, other: LoadedConfig) -> LoadedConfig:
    return dataclasses.replace(other, config=dataclasses.replace(other.config, model=loaded.config.model))
