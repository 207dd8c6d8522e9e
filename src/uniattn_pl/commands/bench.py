"""`bench`: what architectures cost at inference, measured."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from uniattn_pl.commands.arguments import Parser, add_config_arguments, load
from uniattn_pl.commands.plan import compile_plan
from uniattn_pl.config import LoadedConfig, load_config
from uniattn_pl.errors import UserError
from uniattn_pl.files import check_run_folder
from uniattn_pl.plan import LayerPlan

DESCRIPTION = """\
Measures time to first token, time per further token, peak memory and cache bytes of an experiment's architecture,
interleaved in one process with the stock model, the same model under this package's kernels (baseline), the
architectures of bench.beside, and the bound: the same layers without attention. Weights do not matter to cost, so
nothing is trained; a searched plan is that of its fit."""
REFERENCES = ("stock", "baseline")
EXAMPLE = """\
  uniattn-pl bench --config experiments/smollm2/bench.yaml
  uniattn-pl bench --config experiments/quickstart.yaml bench.lengths=[1024] bench.rounds=3"""


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
    plans, bench = _plans(loaded), loaded.config.bench
    if arguments.dry_run:
        print(
            f"dry run: would measure {', '.join([*REFERENCES, *plans])} on {loaded.config.model.source} at "
            f"{', '.join(map(str, bench.lengths))} tokens, batch {', '.join(map(str, bench.batch_sizes))}, "
            f"{', '.join(bench.backends)}, {bench.rounds} rounds."
        )
        return 0
    from uniattn_pl.inference.session import run_benchmark

    run_benchmark(loaded, plans)
    return 0


def _plans(loaded: LoadedConfig) -> dict[str, LayerPlan]:
    """Label -> plan of this experiment and of those beside it, on this experiment's model.

    Raises:
        UserError: with the problems of all of them.
    """
    plans: dict[str, LayerPlan] = {}
    problems: list[str] = []
    for file in (None, *loaded.config.bench.beside):
        try:
            one = loaded if file is None else _on_model_of(loaded, load_config([Path(file).expanduser()]))
            label = one.architecture.name if file is None else Path(file).stem
            plan, _ = compile_plan(one)
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
