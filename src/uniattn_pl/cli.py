"""The command line: finds the command, prints its help or runs it, and turns errors into exit codes.

0 success, 2 the user's input (every problem on stderr, no traceback), 130 interrupted (128 + the number of another
signal that ended a fit), 1 anything else: a run that failed for a known reason (its message), or a bug or broken
environment (its traceback). Errors are shown without the credentials that a URL or a library's message may carry.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Sequence
from importlib import import_module

from uniattn_pl.commands import COMMANDS
from uniattn_pl.commands.arguments import Parser, command_parser, help_width, parse
from uniattn_pl.display.text_width import use_wide_output
from uniattn_pl.errors import RunFailure, UserError, did_you_mean, is_panic
from uniattn_pl.extras import missing_extra, require_extra
from uniattn_pl.redaction import redact
from uniattn_pl.startup import rare_until_work_begins

SUCCESS, FAILURE, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
LONGEST_PATH = 160  # characters shown of it
# What a place can do to whoever reads or writes there, wherever in a command that is; anything else is a bug.
PLACE_ERRORS = {
    errno.EROFS: (USER_ERROR, "cannot be written there; name another place"),
    errno.EACCES: (USER_ERROR, "you may not read or write there; name another place, or get access"),
    errno.EPERM: (USER_ERROR, "you may not read or write there; name another place, or get access"),
    errno.ENAMETOOLONG: (USER_ERROR, "the name is too long for the file system; choose a shorter one"),
    errno.ENOTDIR: (USER_ERROR, "a part of this path is a file where a folder is needed"),
    errno.EISDIR: (USER_ERROR, "a folder is there where a file is needed"),
    errno.EEXIST: (USER_ERROR, "a file is there where a folder is needed"),
    errno.ELOOP: (USER_ERROR, "its links lead in a circle"),
    errno.ENOSPC: (FAILURE, "the disk is full; free some room there and run the same command again"),
    errno.EDQUOT: (FAILURE, "your quota is used up; free some room there and run the same command again"),
    errno.EMFILE: (FAILURE, "too many files are open; raise the limit (ulimit -n)"),
    errno.EIO: (FAILURE, "the disk or the network file system fails"),
    errno.ESTALE: (FAILURE, "the disk or the network file system fails"),
}


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
    except Exception as error:
        missing = missing_extra(error, " ".join(["uniattn-pl", *arguments[:1]]))
        if missing is not None:
            print(f"error: {missing}", file=sys.stderr)
            return USER_ERROR
        return _of_a_place(error) or _bug()
    except BaseException as error:
        if not is_panic(error):
            raise
        return _bug()


def _of_a_place(error: BaseException) -> int:
    """Say what a file or folder does to this command, if that is it, and return the exit code; 0: it is not."""
    cause: BaseException | None = error
    while cause is not None and _number(cause) not in PLACE_ERRORS:
        cause = cause.__cause__
    if cause is None:
        return 0
    number = _number(cause)
    code, what = PLACE_ERRORS[number]
    # `filename2` is where something was to be moved or copied to.
    path = getattr(cause, "filename2", None) or getattr(cause, "filename", None)
    where = f"'{_shortened(str(path))}'" if path else "a file or folder of this command"
    print(f"error: {redact(where)}: {what} ({os.strerror(number)}).", file=sys.stderr)
    return code


def _shortened(path: str) -> str:
    return path if len(path) <= LONGEST_PATH else f"{path[:80]}...{path[-40:]}"


def _number(error: BaseException) -> int:
    """The operating system's number of an error; Rust libraries (safetensors, tokenizers) have it in their words."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0


def _bug() -> int:
    """Show the error that is being handled in full: it says nothing that a user could act on."""
    print(redact(traceback.format_exc()), end="", file=sys.stderr)
    print("error: this is not about your input; please report it with the traceback above.", file=sys.stderr)
    return FAILURE


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview().format_help())
        return SUCCESS
    if arguments[0] in ("--version", "version"):
        from uniattn_pl import __version__

        print(f"uniattn-pl {__version__}")
        return SUCCESS
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        raise UserError(f"unknown {kind} '{name}'.{did_you_mean(name, COMMANDS)} Commands: {', '.join(COMMANDS)}.")
    command = import_module(f"uniattn_pl.commands.{name}_command")
    parser = command_parser(name, command)
    if "-h" in rest or "--help" in rest or rest == ["help"]:
        print(parser.format_help())
        return SUCCESS
    parsed = parse(parser, rest)
    needed = getattr(command, "EXTRA", None)
    if needed is not None and not parsed.print_config:
        require_extra(needed, f"uniattn-pl {name}")
    use_wide_output(getattr(parsed, "wide", False))
    with rare_until_work_begins():
        code: int = command.run(parsed)
    return code


def _overview() -> Parser:
    width, further = help_width(), " " * 13
    commands = "\n".join(
        textwrap.fill(f"  {name:<11}{summary}", width, subsequent_indent=further) for name, summary in COMMANDS.items()
    )
    return Parser(
        prog="uniattn-pl",
        usage="uniattn-pl COMMAND [--config FILE]... [key.path=value]...",
        description="Post-train pre-trained LLMs so that inference gets cheaper.",
        epilog=f"commands:\n{commands}\n\nuniattn-pl COMMAND --help explains one command.\n\n"
        "example:\n  uniattn-pl fit --config quickstart seed=1",
        version=True,
    )
