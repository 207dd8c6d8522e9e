"""Finds the model folder that `--from`, or the experiment's own run, names."""

from __future__ import annotations

import argparse
from pathlib import Path

from uniattn_pl.commands.arguments import Parser, add_config_arguments, load
from uniattn_pl.errors import UserError, did_you_mean

FINAL = "final"
MODEL_FILES = ("config.json", "adapter_config.json")


def add_source_arguments(parser: Parser) -> None:
    """Add `--from` and the config words that can stand in for it."""
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
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


def model_folder(folder: Path) -> Path:
    """Return `folder`, or `final` inside it, whichever holds a model. Raises UserError as `find_model_folder`."""
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}'.{_nearest_folder(folder)}")
    for candidate in (folder / FINAL, folder):
        if any((candidate / name).is_file() for name in MODEL_FILES):
            return candidate
    raise UserError(
        f"'{folder}' holds no model: no config.json in it, nor in its subfolder '{FINAL}' that a finished fit writes."
    )


def _nearest_folder(folder: Path) -> str:
    parent = folder.parent
    if not parent.is_dir():
        return f" There is no folder '{parent}' either."
    names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    hint = did_you_mean(folder.name, names)
    return hint or (f" In '{parent}' there are: {', '.join(names[:20])}." if names else "")
