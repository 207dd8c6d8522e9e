"""Finds the model folder that `--from`, or the experiment's own run, names."""

from __future__ import annotations

import argparse
from pathlib import Path

from uniattn_pl.commands.arguments import Parser, add_config_arguments, load
from uniattn_pl.config.paths import path_argument
from uniattn_pl.errors import UserError
from uniattn_pl.run_folder import model_folder


def add_source_arguments(parser: Parser) -> None:
    """Add `--from` and the config words that can stand in for it."""
    parser.add_argument(
        "--from",
        dest="source",
        type=path_argument,
        metavar="FOLDER",
        help="a run folder (runs/NAME) or a model folder; default: the run folder of --config",
    )
    add_config_arguments(parser, dry_run=True)


def find_model_folder(arguments: argparse.Namespace) -> Path:
    """Return the Hugging Face folder to read: the given one, or `final` inside a run folder.

    Raises:
        UserError: nothing was named, there is no such folder (with the nearest one beside it), or it holds no model.
    """
    if arguments.source is None and not arguments.config:
        raise UserError("name the model: --from RUN_OR_MODEL_FOLDER, or the --config of a finished run.")
    return model_folder(arguments.source or Path(load(arguments).config.trainer.default_root_dir))
