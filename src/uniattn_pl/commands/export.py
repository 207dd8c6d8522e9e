"""`export`: the model of a run as an ordinary Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from uniattn_pl.commands.arguments import Parser, load
from uniattn_pl.commands.folders import add_source_arguments, find_model_folder
from uniattn_pl.errors import UserError

DESCRIPTION = """\
Writes the model of a run, with its tokenizer, as an ordinary Hugging Face folder. After `import uniattn_pl`,
AutoModelForCausalLM.from_pretrained(FOLDER) loads it."""
EXAMPLE = "  uniattn-pl export --from runs/quickstart --to exported/quickstart"


def add_arguments(parser: Parser) -> None:
    """Add the options of `export`."""
    add_source_arguments(parser)
    parser.add_argument("--to", dest="target", type=Path, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the target folder if it holds a model")


def run(arguments: argparse.Namespace) -> int:
    """Check both folders, then write."""
    if arguments.print_config:
        print(load(arguments).to_yaml(), end="")
        return 0
    if arguments.target is None:
        raise UserError("export needs --to FOLDER, the folder to write.")
    source, target = find_model_folder(arguments), arguments.target
    if target.is_file():
        raise UserError(f"--to '{target}' is a file, not a folder.")
    if target.resolve() == source.resolve():
        raise UserError(f"--to '{target}' is the folder to export itself.")
    if target.is_dir() and any(target.iterdir()) and not arguments.overwrite:
        raise UserError(f"--to '{target}' is not empty; choose another folder, or pass --overwrite.")
    if arguments.dry_run:
        print(f"dry run: would write the model of {source} to {target}.")
        return 0
    from transformers.utils.logging import disable_progress_bar

    from uniattn_pl.modeling.saving import export

    disable_progress_bar()  # of single-file transfers, which take a moment
    export(source, target, overwrite=arguments.overwrite)
    print(f"exported {source} to {target}")
    return 0
