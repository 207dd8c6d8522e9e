"""`sweep`: one experiment at many settings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.commands.arguments import Parser, add_config_arguments, load, whole_number
from uniattn_pl.config import LoadedConfig
from uniattn_pl.errors import UserError
from uniattn_pl.printed_commands import config_words
from uniattn_pl.redaction import redact

if TYPE_CHECKING:
    from uniattn_pl.plan import LayerPlan, ModelShape
    from uniattn_pl.sweeps.point_plans import PlanAndShape
    from uniattn_pl.sweeps.sweep_folder import SweepFolder
    from uniattn_pl.sweeps.sweep_point import Point

DESCRIPTION = """\
Runs an experiment at every point of its `sweep` section: named points, a grid over any config keys, seeds. Each
point is a fit of its own, in its own folder and MLflow run. Killed at any point, the same command goes on: finished
points are not run again, a half-done one resumes. Started again while it runs, here or on another machine that has
the same sweep.storage, it joins in as a further worker. `--launcher slurm` has SLURM start workers as jobs, as
sweep.slurm says, and shows their progress."""
SHOWS_TABLES = True
EXAMPLE = """\
  uniattn-pl sweep --config experiments/smollm2/sweep_size.yaml --dry-run
  uniattn-pl sweep --config quickstart
  uniattn-pl sweep --config exp.yaml --max-steps 10 sweep.seeds=[0,1] \\
      'sweep.grid={architecture.num_superblocks: [1, 2, 4]}'
  uniattn-pl sweep --config experiments/smollm2/table1_medical.yaml --only Post-Train,UniAttn
  uniattn-pl sweep --config experiments/smollm2/sweep_size.yaml --launcher slurm --workers 3 sweep.slurm.gpus=1 \\
      --dry-run"""
EXTRA = "training"
MEASURED = "measured"
HERE, SLURM = LAUNCHERS = ("here", "slurm")


def add_arguments(parser: Parser) -> None:
    """Add the options of `sweep`."""
    add_config_arguments(parser, dry_run=True)
    parser.add_argument(
        "--max-steps",
        type=whole_number,
        metavar="N",
        help="optimizer steps of each stage at most (sweep.max_steps)",
    )
    parser.add_argument("--only", metavar="NAMES", help="run these points only, separated by commas; default: all")
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default=HERE,
        help=f"who runs workers: `{HERE}`, this process, is one; `{SLURM}` starts jobs (sweep.slurm)",
    )
    parser.add_argument(
        "--workers", type=whole_number, metavar="N", help="jobs to submit (sweep.slurm.workers); 0: only show the sweep"
    )
    parser.add_argument("--no-wait", action="store_true", help="submit jobs and end, instead of showing the sweep")


def run(arguments: argparse.Namespace) -> int:
    """Check every point, then run them all."""
    if not arguments.config:
        raise UserError("sweep needs --config FILE, for example --config experiments/smollm2/sweep_size.yaml.")
    if arguments.max_steps is not None:
        arguments.overrides.append(f"sweep.max_steps={arguments.max_steps}")
    if arguments.launcher != SLURM and (arguments.workers is not None or arguments.no_wait):
        raise UserError(f"--workers and --no-wait are about jobs; give --launcher {SLURM}, too.")
    if arguments.workers is not None:
        arguments.overrides.append(f"sweep.slurm.workers={arguments.workers}")
    loaded = load(arguments)
    if arguments.print_config:
        print(loaded.to_yaml(), end="")
        return 0
    from uniattn_pl.sweeps.jobs import check_evaluations
    from uniattn_pl.sweeps.point_contents import check_contents
    from uniattn_pl.sweeps.point_plans import known_plans
    from uniattn_pl.sweeps.points import load_points, select_points
    from uniattn_pl.sweeps.sweep_folder import SweepFolder

    points = load_points(arguments.config, arguments.overrides, loaded)
    if arguments.only is not None:
        points = select_points(points, arguments.only)
    folder = SweepFolder(Path(loaded.config.trainer.default_root_dir))
    folder.check()
    folders = folder.planned(points)
    plans = known_plans(points, folders)
    rates = {key: plan_and_shape and _kv_rate(*plan_and_shape) for key, plan_and_shape in plans.items()}
    check_evaluations(points, data=not arguments.dry_run)
    check_contents(points, folders)
    if arguments.dry_run:
        if arguments.launcher == SLURM:
            _print_batch_script(loaded, folder)
        _dry_run(loaded, points, folder, folders, plans, rates)
        return 0
    words = config_words(arguments.config, arguments.overrides)
    if arguments.launcher == SLURM:
        from uniattn_pl.sweeps.slurm_sweep import run_on_slurm

        chosen = [] if arguments.only is None else ["--only", arguments.only]
        run_on_slurm(loaded, points, rates, [*words, *chosen], wait=not arguments.no_wait)
        return 0
    from uniattn_pl.sweeps.worker import run_sweep

    whole = arguments.only is None
    commands = run_sweep(loaded, points, rates, words, whole=whole)
    if whole and loaded.config.sweep.then:
        from uniattn_pl.commands.following_commands import run_following

        run_following(loaded, points, folder, words)
    print(f"\n{commands}")
    return 0


def _print_batch_script(loaded: LoadedConfig, folder: SweepFolder) -> None:
    from uniattn_pl.sweeps.slurm_jobs import batch_script
    from uniattn_pl.sweeps.slurm_sweep import jobs_name

    slurm = loaded.config.sweep.slurm
    print(f"batch script of each of {slurm.workers} jobs:\n")
    print(batch_script(slurm, jobs_name(loaded.config.name), folder.slurm))


def _kv_rate(plan: LayerPlan, shape: ModelShape) -> float:
    from uniattn_pl.plan import costs

    return costs.kv_retain_rate(plan, shape, length=costs.CACHE_LENGTH)


def _dry_run(
    loaded: LoadedConfig,
    points: Sequence[Point],
    folder: SweepFolder,
    folders: Mapping[str, Path],
    plans: dict[str, PlanAndShape | None],
    rates: dict[str, float | None],
) -> None:
    """Open what the points' fits would open, and list them."""
    from uniattn_pl.display.text_table import print_table, print_text
    from uniattn_pl.sweeps.point_checks import check_points

    unopened = check_points(points)
    rows = []
    for point in points:
        rate, plan_and_shape = rates[point.key], plans[point.key]
        memory = MEASURED if plan_and_shape is None else _memory_text(point, *plan_and_shape)
        state = "begun" if folders[point.key].exists() else "new"
        rows.append((point.name, MEASURED if rate is None else f"{rate:.1%}", memory, state, str(folders[point.key])))
    columns = ("point", "KV", "training memory", "state", "folder")
    print_table(f"{loaded.config.name}: {len(points)} points", columns, rows)
    storage = loaded.config.sweep.storage or f"sqlite in {folder.bookkeeping}"
    print_text(f"training memory: of each device, an estimate (`{MEASURED}`: the fit chooses the layers as it starts)")
    print(f"ledger: {redact(storage)}; tracking: {redact(loaded.config.tracking.uri)}")
    for reason in unopened:
        print(f"not checked: the model's own files: {reason}")
    if loaded.config.sweep.then:
        print(f"when every point has ended: {', '.join(loaded.config.sweep.then)}")
    print("dry run: all points were checked, nothing was started.")


def _memory_text(point: Point, plan: LayerPlan, shape: ModelShape) -> str:
    from uniattn_pl.display.text_table import bytes_text
    from uniattn_pl.training.memory_estimate import estimated_peak_memory

    memory = estimated_peak_memory(point.loaded.config, plan, shape)
    return "-" if memory is None else bytes_text(memory)
