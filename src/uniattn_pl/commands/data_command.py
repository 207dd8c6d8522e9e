"""`data`: the rows of shipped experiments, built from the public sets that they are of."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from uniattn_pl.commands.arguments import Parser
from uniattn_pl.config.paths import path_argument
from uniattn_pl.config.published_sets import SETS
from uniattn_pl.errors import UserError, did_you_mean

DESCRIPTION = """\
Builds the files of rows that shipped experiments read, from the public sets on the hub: the very rows of
docs/RESULTS.md, found by published ids or digests and checked by a digest of the whole file. A file that is there is
left as it is. Without a network, `fit --embedded` takes rows that the product writes itself."""
EXAMPLE = """\
  uniattn-pl data pmc-1000
  uniattn-pl data evaluation --to data/evaluation"""


def add_arguments(parser: Parser) -> None:
    """Add the options of `data`."""
    parser.add_argument("name", metavar="{" + ",".join(SETS) + "}", help="what to build")
    parser.add_argument(
        "--to",
        dest="target",
        type=path_argument,
        metavar="FOLDER",
        help="where it is written; default: where shipped experiments look for it, $UNIATTN_PL_DATA (of evaluation: "
        "$UNIATTN_PL_EVALUATION_DATA) or a folder beside the checkout",
    )
    parser.add_argument(
        "--mirror",
        type=path_argument,
        metavar="FOLDER",
        help="read copies of the sets' Parquet shards, OWNER/NAME/**/SPLIT*.parquet, in place of the hub",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be built, and exit")


def run(arguments: argparse.Namespace) -> int:
    """Build the files of one set."""
    name = arguments.name
    if name not in SETS:
        raise UserError(f"there is no set '{name}'.{did_you_mean(name, SETS)} Sets: {', '.join(SETS)}.")
    published = SETS[name]
    named = path_argument(os.environ.get(published.variable) or published.default)
    folder: Path = arguments.target or named
    if arguments.mirror is not None and not arguments.mirror.is_dir():
        raise UserError(f"--mirror: there is no folder '{arguments.mirror}'.")
    if arguments.dry_run:
        for file in published.files:
            print(f"dry run: would write {folder / file.place}, {file.rows:,} rows of {file.hub}, split {file.split}.")
        return 0
    from uniattn_pl.extras import require_extra

    require_extra("training", "building rows of public sets", modules=["datasets", "pyarrow"])
    from uniattn_pl.data.built_sets import build_set

    build_set(name, folder, mirror=arguments.mirror, tell=print)
    if folder.resolve() != named.resolve():
        print(f"shipped experiments find it with: export {published.variable}={folder.resolve()}")
    return 0
