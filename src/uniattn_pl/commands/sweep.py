"""`sweep`: one experiment at many settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.commands.arguments import Parser, add_config_arguments, load
from uniattn_pl.config import LoadedConfig
from uniattn_pl.errors import UserError
from uniattn_pl.tracking.redaction import redact

if TYPE_CHECKING:
    from uniattn_pl.sweeps.points import Point

DESCRIPTION = """\
Runs an experiment at every point of its `sweep` section: named points, a grid over any config keys, seeds. Each
point is a fit of its own, in its own folder and MLflow run. Killed at any point, the same command goes on: finished
points are not run again, a half-done one resumes. Started again while it runs, here or on another machine that has
the same sweep.storage, it joins in as a further worker."""
EXAMPLE = """\
  uniattn-pl sweep --config experiments/smollm2/sweep_size.yaml --dry-run
  uniattn-pl sweep --config experiments/quickstart.yaml --max-steps 10 sweep.seeds=[0,1] \
      'sweep.grid={architecture.num_superblocks: [1, 2, 4]}'"""


def add_arguments(parser: Parser) -> None:
    """Add the options of `sweep`."""
    add_config_arguments(parser, dry_run=True)
    parser.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="optimizer steps of each stage at most (sweep.max_steps)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check every point, then run them all."""
    if not arguments.config:
        raise UserError("sweep needs --config FILE, for example --config experiments/smollm2/sweep_size.yaml.")
    if arguments.max_steps is not None:
        arguments.overrides.append(f"sweep.max_steps={arguments.max_steps}")
    loaded = load(arguments)
    if arguments.print_config:
        print(loaded.to_yaml(), end="")
        return 0
    from uniattn_pl.sweeps.points import load_points

    points = load_points(arguments.config, arguments.overrides, loaded)
    rates = _kv_rates(points)
    if arguments.dry_run:
        _dry_run(loaded, points, rates)
        return 0
    from uniattn_pl.sweeps.worker import run_sweep

    words = [word for file in arguments.config for word in ("--config", str(file))]
    run_sweep(loaded, points, rates, [*words, *arguments.overrides])
    return 0


def _kv_rates(points: Sequence[Point]) -> dict[str, float | None]:
    """Key -> KV retain rate of each point whose plan is known before its fit; None for the others.

    Raises:
        UserError: with every point whose architecture does not fit its model.
    """
    from uniattn_pl import costs
    from uniattn_pl.commands.plan import checked_shape, compile_plan
    from uniattn_pl.training.phases import CACHE_LENGTH

    rates: dict[str, float | None] = {}
    problems: list[str] = []
    for point in points:
        rates[point.key] = None
        try:
            if point.loaded.architecture.measured:
                checked_shape(point.loaded)
            else:
                plan, shape = compile_plan(point.loaded)
                rates[point.key] = costs.kv_retain_rate(plan, shape, length=CACHE_LENGTH)
        except UserError as error:
            problems += [f"point '{point.name}': {problem}" for problem in error.problems]
    if problems:
        raise UserError(*problems)
    return rates


def _dry_run(loaded: LoadedConfig, points: Sequence[Point], rates: dict[str, float | None]) -> None:
    """List the points."""
    from uniattn_pl.commands.tables import print_table
    from uniattn_pl.sweeps.folder import SweepFolder

    folder = SweepFolder(Path(loaded.config.trainer.default_root_dir))
    folder.check()
    folders = folder.planned(points)
    rows = []
    for point in points:
        rate = rates[point.key]
        state = "begun" if folders[point.key].exists() else "new"
        rows.append((point.name, "measured" if rate is None else f"{rate:.1%}", state, str(folders[point.key])))
    print_table(f"{loaded.config.name}: {len(points)} points", ("point", "KV", "state", "folder"), rows)
    storage = loaded.config.sweep.storage or f"sqlite in {folder.own}"
    print(f"ledger: {redact(storage)}; tracking: {redact(loaded.config.tracking.uri)}")
    print("dry run: all points were checked, nothing was started.")
