"""Blocks of pages that are no Python: YAML is of a config, and lines of a shell are commands that there are."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from tests.docs.documented import PAGES, ROOT, command_lines, in_markdown

from uniattn_pl.config.json_schema import experiment_schema
from uniattn_pl.config.yaml_scalars import parse_value
from uniattn_pl.extras import EXTRAS

SCHEMA = jsonschema.Draft7Validator(experiment_schema())

LANGUAGES = {"bash", "console", "math", "python", "text", "toml", "yaml"}  # "": drawings and tables as they are printed
PYTEST_FILES = re.compile(r"tests/[\w/]+(?:\.py)?")
# Lines that no program of this project reads, and why they are not tried here.
FOREIGN = {
    "status=$?; [ $status -eq 138 ] && scontrol requeue $SLURM_JOB_ID; exit $status": "of a SLURM job, run by "
    "tests/resilience/test_slurm.py in its own words",
}


def blocks(language: str) -> Iterator[Any]:
    """The blocks of a language, each with its place; those of lists are indented."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^( *)```{language}\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
            place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start(2)) + 1}"
            yield pytest.param(match[2], place, id=place)


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        opened = False
        for line in page.read_text(encoding="utf-8").splitlines():
            fence = re.match(r" *```(\w*)", line)
            if fence:
                assert opened or fence[1] in LANGUAGES | {""}, f"{page}: {line}"
                opened = not opened
        assert not opened, page


@pytest.mark.parametrize(("text", "place"), blocks("yaml"))
def test_yaml_is_a_config_or_a_part_of_one(text: str, place: str) -> None:
    """Its keys, types and values are those of the schema; files that it names are the reader's."""
    if all(line.startswith("#") for line in text.splitlines()):
        return
    problems = [f"{place}: {error.json_path}: {error.message}" for error in SCHEMA.iter_errors(parse_value(text))]
    assert problems == []


def test_a_key_that_there_is_not_would_be_found() -> None:
    assert list(SCHEMA.iter_errors(parse_value("architecture: {name: cla, num_superblock: 2}")))
    assert list(SCHEMA.iter_errors(parse_value("training: {stage2: {learning_rate: fast}}")))


@pytest.mark.parametrize(("text", "place"), blocks("toml"))
def test_toml_is_toml(text: str, place: str) -> None:
    assert tomllib.loads(text)


@pytest.mark.parametrize(("line", "place"), [pytest.param(*found, id=found[1]) for found in command_lines()])
def test_a_line_of_a_shell_is_a_command_that_there_is(line: str, place: str) -> None:
    """Commands of this project are tried by test_documented_commands.py; of others their files and extras are there."""
    words = shlex.split(line, comments=True)
    if line in FOREIGN or not words or words == ["source", ".venv/bin/activate"]:
        return
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    if words[:2] == ["pip", "install"]:
        for asked in words[2:]:
            package, extras = re.fullmatch(r"([\w-]+)(?:\[([\w,]+)\])?", asked).groups()  # type: ignore[union-attr]
            assert package == "uniattn-pl"
            assert set((extras or "all").split(",")) <= {*EXTRAS, "all"}
    elif words[:3] == ["python", "-m", "pytest"]:
        for path in filter(PYTEST_FILES.fullmatch, words):
            assert (ROOT / path).exists(), place
    else:
        pytest.fail(f"{place}: nothing tries `{line}`")


def test_indented_blocks_are_read_too() -> None:
    places = {command.place for page in PAGES for command in in_markdown(page) if command is not None}
    assert any(place.startswith("docs/extending.md") for place in places)
