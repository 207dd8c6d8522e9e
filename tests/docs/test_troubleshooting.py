"""docs/troubleshooting.md quotes what the program says: cheap commands are run, other messages are found in src/.

A `console` block is a command behind `$` and all that it prints as errors; FOLDER is where it was run. A `text` block
has lines, each of which is a text of the source but for what is filled in. A quoted line that is too long goes on in
lines that begin with two spaces.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tests.docs.documented import ROOT

from uniattn_pl.cli import main

PAGE = ROOT / "docs" / "troubleshooting.md"
LEAST = 20  # characters of a message that are fixed; shorter ones could be of anything


def blocks(kind: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and lines of each block of this kind, continued lines joined."""
    text = PAGE.read_text(encoding="utf-8")
    for match in re.finditer(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start(1)) + 1, match[1].replace("\n  ", " ").splitlines()


@pytest.mark.parametrize(("line", "block"), [pytest.param(*b, id=f"{b[0]}: {b[1][0]}") for b in blocks("console")])
def test_a_wrong_command_says_what_is_quoted(
    line: int, block: list[str], sandbox: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *quoted = block
    assert main(shlex.split(command.removeprefix("$ python -m uniattn_pl "))) == 2, f"docs/troubleshooting.md:{line}"
    printed = capsys.readouterr().err.replace(str(sandbox), "FOLDER")
    assert printed.splitlines() == quoted, f"docs/troubleshooting.md:{line}"


@pytest.mark.parametrize(
    "message", [pytest.param(message, id=f"{line}: {message[:50]}") for line, b in blocks("text") for message in b]
)
def test_a_message_is_one_of_the_source(message: str) -> None:
    text = message.removeprefix("error: ")
    fixed = [pattern for pattern in patterns() if re.fullmatch(pattern, text)]
    assert fixed, f"no text of src/ is '{text}'"


@cache
def patterns() -> list[str]:
    """A pattern for each text of the source that may be a message: what is filled in matches anything."""
    found = []
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            fixed = [text for text in texts if isinstance(text, str)]
            if sum(map(len, fixed)) >= LEAST:
                found.append("".join(re.escape(t) if isinstance(t, str) else ".*" for t in texts))
    return found
