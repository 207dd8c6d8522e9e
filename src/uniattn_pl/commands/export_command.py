"""`export`: the model of a run as an ordinary Hugging Face folder."""

from __future__ import annotations

import argparse

from uniattn_pl.commands.arguments import Parser, load
from uniattn_pl.commands.model_source import add_source_arguments, find_model_folder
from uniattn_pl.config.paths import path_argument
from uniattn_pl.errors import UserError
from uniattn_pl.exporting.export_target import check_target

DESCRIPTION = """\
Writes the model of a run, with its tokenizer, as an ordinary Hugging Face folder. After `import uniattn_pl`,
AutoModelForCausalLM.from_pretrained(FOLDER) loads it; with --standalone also without this package, given
trust_remote_code=True. A peft adapter folder is merged into its base."""
EXAMPLE = """\
  uniattn-pl export --from runs/quickstart --to exported/quickstart
  uniattn-pl export --from runs/quickstart --to exported/anywhere --standalone"""


def add_arguments(parser: Parser) -> None:
    """Add the options of `export`."""
    add_source_arguments(parser)
    parser.add_argument("--to", dest="target", type=path_argument, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the target folder if it holds a model")
    parser.add_argument(
        "--standalone", action="store_true", help="add the code that loads the folder without this package"
    )
    parser.add_argument(
        "--drop",
        type=_layer_indices,
        default=[],
        metavar="LAYERS",
        help="remove the attention of these layers too, as in 27,28 (0-based)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check both folders, then write."""
    if arguments.print_config:
        print(load(arguments).to_yaml(), end="")
        return 0
    if arguments.target is None:
        raise UserError("export needs --to FOLDER, the folder to write.")
    source, target = find_model_folder(arguments), arguments.target
    check_target(source, target, overwrite=arguments.overwrite)
    if arguments.dry_run:
        from uniattn_pl.modeling.loading.pretrained import check_folder

        check_folder(source)
        print(f"dry run: would write the model of {source} to {target}.")
        return 0
    from transformers.utils.logging import disable_progress_bar

    from uniattn_pl.exporting.export import export

    disable_progress_bar()  # of single-file transfers, which take a moment
    export(source, target, overwrite=arguments.overwrite, standalone=arguments.standalone, drop=arguments.drop)
    print(f"exported {source} to {target}")
    return 0


def _layer_indices(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected layer indices separated by commas, got '{text}'") from None
