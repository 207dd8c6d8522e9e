"""Finds the model folder that `--from`, or the experiment's own run, names."""

from __future__ import annotations

import argparse
from pathlib import Path

from uniattn_pl.commands.arguments import Parser, add_config_arguments, load
from uniattn_pl.config.paths import path_argument
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.families.catalogue import MODELS, named_model
from uniattn_pl.run_folder import model_folder


def add_source_arguments(parser: Parser) -> None:
    """Add `--from` and the config words that can stand in for it."""
    parser.add_argument(
        "--from",
        dest="source",
        type=path_argument,
        metavar="MODEL",
        help="a run folder (runs/NAME), a model folder, a name from `list models` or a hub id; default: the run folder "
        "of --config",
    )
    add_config_arguments(parser, dry_run=True)


def find_model_folder(arguments: argparse.Namespace) -> Path:
    """Return the Hugging Face folder to read: the one that `--from` names, or that of the experiment's run.

    Raises:
        UserError: nothing was named, or as `folder_of`.
    """
    if arguments.source is None and not arguments.config:
        raise UserError("name the model: --from MODEL, or the --config of a finished run.")
    if arguments.source is not None:
        return folder_of(arguments.source)
    return model_folder(Path(load(arguments).config.trainer.default_root_dir))


def folder_of(place: Path) -> Path:
    """Return the folder of a model: the given one, `final` inside a run folder, that of a name or a hub's snapshot.

    What lies here goes before names and hub ids of the same spelling.

    Raises:
        UserError: there is no such folder (with the nearest one beside it) and no model of that name, it holds no
            model, or the hub does not give it.
    """
    name = str(place)
    if not place.exists() and not place.is_absolute():
        if name in MODELS:
            return named_model(name)
        if len(place.parts) == 2 and not place.parent.is_dir():  # a hub id: nothing here begins like it
            from uniattn_pl.modeling.loading.model_places import hub_folder

            return hub_folder(name)
    try:
        return model_folder(place)
    except UserError as error:
        hint = "" if place.exists() else did_you_mean(name, MODELS)
        raise UserError(f"{error}{hint}") from None
