"""The command line: finds the command, prints its help or runs it, and turns errors into exit codes.

0 success, 2 the user's input (every problem on stderr, no traceback), 130 interrupted (128 + the number of another
signal that ended a fit), 1 anything else: a run that failed for a known reason (its message), or a bug or broken
environment (its traceback). Errors are shown without the credentials that a URL or a library's message may carry.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from uniattn_pl.commands import COMMANDS
from uniattn_pl.commands.arguments import Parser, command_parser, parse
from uniattn_pl.errors import RunFailure, UserError, did_you_mean
from uniattn_pl.redaction import redact

SUCCESS, FAILURE, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: of this process) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except UserError as error:
        for problem in error.problems:
            print(f"error: {redact(problem)}", file=sys.stderr)
        return USER_ERROR
    except RunFailure as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; an interrupted fit resumes with the same command.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SUCCESS
    except Exception:
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        print("error: this is not about your input; please report it with the traceback above.", file=sys.stderr)
        return FAILURE


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview().format_help())
        return SUCCESS
    if arguments[0] == "--version":
        from uniattn_pl import __version__

        print(f"uniattn-pl {__version__}")
        return SUCCESS
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        raise UserError(f"unknown {kind} '{name}'.{did_you_mean(name, COMMANDS)} Commands: {', '.join(COMMANDS)}.")
    command = import_module(f"uniattn_pl.commands.{name}_command")
    parser = command_parser(name, command)
    if "-h" in rest or "--help" in rest:
        print(parser.format_help())
        return SUCCESS
    code: int = command.run(parse(parser, rest))
    return code


def _overview() -> Parser:
    commands = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    return Parser(
        prog="uniattn-pl",
        usage="uniattn-pl COMMAND [--config FILE]... [key.path=value]...",
        description="Post-train pre-trained LLMs so that inference gets cheaper.",
        epilog=f"commands:\n{commands}\n\nuniattn-pl COMMAND --help explains one command.\n\n"
        "example:\n  uniattn-pl fit --config experiments/quickstart.yaml seed=1",
        version=True,
    )
