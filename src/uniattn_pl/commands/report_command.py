"""`report`: the runs of a sweep as a table and figures."""

from __future__ import annotations

import argparse
from pathlib import Path

from uniattn_pl.commands.arguments import Parser, add_config_arguments, load
from uniattn_pl.config.paths import path_argument
from uniattn_pl.errors import UserError

DESCRIPTION = """\
Reads the runs of a sweep from MLflow and writes report.md, table.csv, table.json and figures: a row per point (points
that differ by their seed are one, with mean and spread), the columns and figures of the config's `report` section.
Times come from runs of `bench` with the same plan. What is missing is listed with the command that fills it. Without a
sweep in the config the table has one row: its fit."""
SHOWS_TABLES = True
EXAMPLE = """\
  uniattn-pl report --config experiments/smollm2/table1_medical.yaml
  uniattn-pl report --config experiments/smollm2/sweep_size.yaml --to reports/size \\
      'report.figures={by_size: {x: architecture.superblock_size, y: [KV cache]}}' \\
      'report.columns={KV cache: cost/kv_retain_rate}'"""
EXTRA = "training"


def add_arguments(parser: Parser) -> None:
    """Add the options of `report`."""
    add_config_arguments(parser, dry_run=False)
    parser.add_argument(
        "--to", dest="target", type=path_argument, metavar="FOLDER", help="where it is written; default: reports/NAME"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the config, then report."""
    if not arguments.config:
        raise UserError("report needs --config FILE, for example --config experiments/smollm2/table1_medical.yaml.")
    loaded = load(arguments)
    if arguments.print_config:
        print(loaded.to_yaml(), end="")
        return 0
    from uniattn_pl.reporting.write_report import Request, write_report

    folder = arguments.target or Path("reports", loaded.config.name)
    write_report(Request(loaded, arguments.config, arguments.overrides, folder))
    return 0
