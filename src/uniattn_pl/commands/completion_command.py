"""`completion`: a script by which a shell completes this program's words, generated from its parsers and its schema."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module

from uniattn_pl.commands import COMMANDS
from uniattn_pl.commands.arguments import Parser, command_parser
from uniattn_pl.commands.completion_scripts import SCRIPTS
from uniattn_pl.config.option_reference import ITEM, key_names, reference
from uniattn_pl.errors import UserError, did_you_mean

DESCRIPTION = """\
Prints a script that completes commands, their options, the keys of a config and the values that a key allows. For this
shell: eval "$(uniattn-pl completion bash)"; for every one: put that line into ~/.bashrc, or with zsh into ~/.zshrc
behind compinit."""
EXAMPLE = """\
  uniattn-pl completion bash
  uniattn-pl completion zsh"""


def add_arguments(parser: Parser) -> None:
    """Add the options of `completion`."""
    parser.add_argument("shell", metavar="SHELL", help=" or ".join(SCRIPTS))


def run(arguments: argparse.Namespace) -> int:
    """Print the script of one shell."""
    shell = arguments.shell
    if shell not in SCRIPTS:
        raise UserError(f"no completion for '{shell}'.{did_you_mean(shell, SCRIPTS)} Shells: {', '.join(SCRIPTS)}.")
    print(script(shell), end="")
    return 0


@dataclass(frozen=True)
class Words:
    """What can follow a command.

    Attributes:
        fixed: its options, and the words of `list` and the like.
        takes_config: whether keys of a config can.
    """

    fixed: tuple[str, ...]
    takes_config: bool


def script(shell: str) -> str:
    """The script of one of `SCRIPTS`."""
    commands = {name: _words_of(name) for name in COMMANDS}
    cases = [f"{name}) words={_quoted(one.fixed)}; config={int(one.takes_config)};;" for name, one in commands.items()]
    values = [f"{key}) values={_quoted(allowed)};;" for key, allowed in _values().items()]
    return SCRIPTS[shell].substitute(
        commands=_quoted([*COMMANDS, "help", "--help", "--version"]),
        cases=_indented(cases),
        keys=_quoted([f"{key}=" for key in key_names()]),
        values=_indented(values),
    )


def _words_of(name: str) -> Words:
    module = import_module(f"uniattn_pl.commands.{name}_command")
    parser = command_parser(name, module)
    options = [option for action in parser._actions for option in action.option_strings if option != "-h"]
    topics = {"list": getattr(module, "TOPICS", ()), "completion": SCRIPTS}.get(name, ())
    return Words((*topics, *options), "--config" in options)


def _values() -> dict[str, tuple[str, ...]]:
    """Key -> the values it allows, of those that allow some; an option of several architectures allows those of all."""
    found: dict[str, tuple[str, ...]] = {}
    for section in reference():
        for key in section.keys:
            allowed = ("true", "false") if key.kind.startswith("true or false") else tuple(map(str, key.allowed))
            if allowed and ITEM not in key.key:
                found[key.key] = tuple(dict.fromkeys([*found.get(key.key, ()), *allowed]))
    return found


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


def _indented(lines: list[str]) -> str:
    return "\n".join(f"        {line}" for line in lines)
