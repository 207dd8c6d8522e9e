"""`analyze`: why an architecture works on a model, or does not."""

from __future__ import annotations

import argparse
from pathlib import Path

from uniattn_pl.commands.arguments import Parser, add_config_arguments, load, whole_number
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.run_folder import check_run_folder

DESCRIPTION = """\
Measures an experiment's model on its training rows: similarity of attention maps across layers, importance of
each attention, depth factor, the loss as more layers reuse, what the compensation repairs. Each is a table and a
figure, in the run folder's analysis/ and in MLflow. `selection` measures every layer again and again: 7 minutes on
two CPU cores for 12 reuse layers of a 135M model, and it goes on where it was when killed."""
SHOWS_TABLES = True
EXAMPLE = """\
  uniattn-pl analyze --config experiments/smollm2/pmc_uniattn.yaml
  uniattn-pl analyze --config experiments/smollm2/pmc_uniattn.yaml --only similarity --tokens 8000"""
EXTRA = "training"
TOPICS = ("similarity", "importance", "depth", "selection", "compensation")


def add_arguments(parser: Parser) -> None:
    """Add the options of `analyze`."""
    add_config_arguments(parser, dry_run=True)
    parser.add_argument(
        "--only", metavar="TOPICS", help=f"some of {','.join(TOPICS)}, separated by commas; default: all"
    )
    parser.add_argument("--tokens", type=whole_number, default=4000, metavar="N", help="training tokens; default: 4000")


def run(arguments: argparse.Namespace) -> int:
    """Check the request, then analyse."""
    if not arguments.config:
        raise UserError("analyze needs --config FILE, for example --config quickstart.")
    loaded = load(arguments)
    if arguments.print_config:
        print(loaded.to_yaml(), end="")
        return 0
    topics = list(TOPICS) if arguments.only is None else arguments.only.split(",")
    problems = [
        f"--only: there is no analysis '{topic}'.{did_you_mean(topic, TOPICS)} Allowed: {', '.join(TOPICS)}."
        for topic in topics
        if topic not in TOPICS
    ]
    if arguments.tokens < 1:
        problems.append(f"--tokens must be at least 1, got {arguments.tokens}.")
    if problems:
        raise UserError(*problems)
    check_run_folder(Path(loaded.config.trainer.default_root_dir))
    from uniattn_pl.inference.device import trainer_device

    trainer_device(loaded.config)
    if arguments.dry_run:
        print(
            f"dry run: would analyse {', '.join(topics)} of {loaded.config.model.source} on {arguments.tokens} tokens."
        )
        return 0
    from uniattn_pl.analysis.analyze import analyze
    from uniattn_pl.display.quiet_libraries import quiet_libraries

    quiet_libraries()
    analyze(loaded, topics if arguments.only else None, tokens=arguments.tokens)
    return 0
