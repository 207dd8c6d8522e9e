"""A shell completes what the program takes: asked of bash itself, as it asks for a word."""

from __future__ import annotations

import re
import subprocess

import pytest

from uniattn_pl.cli import main
from uniattn_pl.commands import COMMANDS
from uniattn_pl.commands.completion_command import script

# What readline does before it calls a completion: words end at `=`, too.
ASK = r"""
eval "$(cat)"
line=$1
COMP_LINE=$line COMP_POINT=${#line}
read -ra COMP_WORDS <<< "${line//=/ = }"
[[ $line == *[[:space:]=] ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_uniattn_pl
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {shell: script(shell) for shell in ("bash", "zsh")}


def offered(line: str, completion: str) -> list[str]:
    asked = ["bash", "-c", ASK, "bash", line]
    done = subprocess.run(asked, input=completion, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("uniattn-pl fi", ["fit"]),
        ("uniattn-pl fit --dr", ["--dry-run"]),
        ("uniattn-pl list opt", ["options"]),
        ("uniattn-pl completion ", ["bash", "zsh", "--help"]),
        ("uniattn-pl fit training.stage2.le", ["training.stage2.learning_rate="]),
        ("uniattn-pl fit architecture.num_superb", ["architecture.num_superblocks="]),
        ("uniattn-pl fit --config a.yaml training.keep=", ["last", "best"]),
        ("uniattn-pl plan data.packing=t", ["true"]),
        ("uniattn-pl list training.keep=", []),
    ],
)
def test_bash_offers(line: str, words: list[str], scripts: dict[str, str]) -> None:
    assert offered(line, scripts["bash"]) == words


def test_bash_offers_every_command(scripts: dict[str, str]) -> None:
    assert set(COMMANDS) <= set(offered("uniattn-pl ", scripts["bash"]))


def test_zsh_is_given_the_same_words(scripts: dict[str, str]) -> None:
    cases = re.compile(r"^ +[\w.]+\) (?:words|values)=.*;;$", re.MULTILINE)
    assert cases.findall(scripts["bash"]) == cases.findall(scripts["zsh"]) != []
    keys = next(line for line in scripts["bash"].splitlines() if "seed=" in line)
    assert re.findall(r"'([^']*seed=[^']*)'", keys)[0] in scripts["zsh"]
    assert scripts["zsh"].startswith("#compdef uniattn-pl")


def test_another_shell_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 2
    assert "Shells: bash, zsh." in capsys.readouterr().err
