"""What all commands use: the parser, and the `--config FILE ... key.path=value` words that every one takes."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import Any, NoReturn

from uniattn_pl.commands.understood_words import keys_like, understood
from uniattn_pl.config import LoadedConfig, load_config
from uniattn_pl.config.presets import config_argument
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.options import LARGEST

# What `--embedded` stands for: all that says where rows come from and how these are read.
STAND_IN = (
    "data.source=embedded",
    "data.format=auto",
    *(f"data.{key}=null" for key in ("sources", "further_sources", "more_files", "validation_source", "text_column")),
    "data.pack_documents=false",
    "data.streaming=false",
)
_LONGEST_NUMBER = 40  # characters that are read; a whole number with more of them is too large anyway


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors, like all wrong input."""

    def __init__(self, *, version: bool = False, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        if version:
            self.add_argument("--version", action="store_true", help="show the version and exit")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See: {self.prog} --help")


def help_width() -> int:
    """Columns of a help text, as argparse counts them."""
    return max(40, shutil.get_terminal_size().columns - 2)


def command_parser(name: str, command: ModuleType) -> Parser:
    """Build the parser of one command from its module."""
    description = textwrap.fill(" ".join(command.DESCRIPTION.split()), help_width())
    parser = Parser(prog=f"uniattn-pl {name}", description=description, epilog=f"example:\n{command.EXAMPLE}")
    command.add_arguments(parser)
    if getattr(command, "SHOWS_TABLES", False):
        parser.add_argument("--wide", action="store_true", help="tables as wide as they are, whatever the terminal")
    return parser


def add_config_arguments(parser: Parser, *, dry_run: bool) -> None:
    """Add `--config`, the overrides, `--print-config` and, where the command does work, `--dry-run`."""
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        type=config_argument,
        metavar="FILE",
        help="experiment file, or a preset such as quickstart; may be repeated, later ones win",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="overrides of the config, e.g. training.batch_size=8"
    )
    parser.add_argument(
        "--embedded",
        action="store_true",
        help="rows that the product writes itself in place of the config's, where these are not here",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config, with the origin of each value, and exit"
    )
    if dry_run:
        parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, and exit")


def whole_number(text: str) -> int:
    """The value of an option that counts something. Raises ArgumentTypeError, which the parser makes a UserError."""
    try:
        number = int(text[:_LONGEST_NUMBER])
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got '{text[:_LONGEST_NUMBER]}'") from None
    if abs(number) > LARGEST:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST}, got {text[:_LONGEST_NUMBER]}")
    return number


def parse(parser: Parser, words: list[str]) -> argparse.Namespace:
    """Parse a command's words; overrides and config files may stand before, between and after options.

    Raises:
        UserError: an unknown option (with the nearest known one), or a missing or malformed value.
    """
    options = [option for action in parser._actions for option in action.option_strings]
    takes_config = "--config" in options
    if takes_config:
        valued = [option for action in parser._actions if action.nargs != 0 for option in action.option_strings]
        words = understood(words, options, valued)
    arguments, rest = parser.parse_known_args(words)
    unknown = [word.partition("=")[0] for word in rest if word.startswith("-")]
    if unknown:
        hints = [_hint(word, options, takes_config=takes_config) for word in unknown]
        raise UserError(
            *(
                f"unknown option '{word}'.{hint} See: {parser.prog} --help"
                for word, hint in zip(unknown, hints, strict=True)
            )
        )
    if rest:
        if not hasattr(arguments, "overrides"):
            raise UserError(*(f"unexpected argument '{word}'. See: {parser.prog} --help" for word in rest))
        arguments.overrides += rest
    if getattr(arguments, "embedded", False):
        arguments.overrides = [*STAND_IN, *arguments.overrides]
    return arguments


def _hint(word: str, options: Sequence[str], *, takes_config: bool) -> str:
    """What an unknown option may mean: one of the command's, or a key of the config."""
    keys = keys_like(word) if takes_config and word.replace("_", "-") not in options else ""
    return keys or did_you_mean(word, options)


def load(arguments: argparse.Namespace, *, unread: Collection[str] = ()) -> LoadedConfig:
    """Load the experiment that a command line names. Raises UserError with all its problems, but those of `unread`."""
    return load_config(arguments.config, arguments.overrides, unread=unread)
