"""docs/architecture.md names what there is: every name in it resolves, its picture is what the linter holds."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "src" / "uniattn_pl"
ROOMS = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
NAME = re.compile(r"`([a-z_]+(?:\.\w+)+)`")
PATH = re.compile(r"`([a-z_]+/(?:[a-z_]+\.py)?)`")
WALKS = ("The way of a config", "The way of a plan", "The way of a batch", "The way of a checkpoint")


def names(text: str) -> list[str]:
    return [name for name in NAME.findall(text) if name.split(".")[0] in ROOMS]


def resolve(name: str) -> Any:
    """What a dotted name below `uniattn_pl` stands for: a module, or something in one."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        module = ".".join(["uniattn_pl", *parts[:depth]])
        if (PACKAGE.joinpath(*parts[:depth]).with_suffix(".py")).is_file() or PACKAGE.joinpath(*parts[:depth]).is_dir():
            found = import_module(module)
            for attribute in parts[depth:]:
                found = getattr(found, attribute)
            return found
    raise AttributeError(name)


def sections() -> Iterator[tuple[str, str]]:
    for section in PAGE.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        yield title, text


def test_every_dotted_name_is_one_of_the_package() -> None:
    assert {name for name in NAME.findall(PAGE) if name.split(".")[0] not in ROOMS} == set()


@pytest.mark.parametrize("name", sorted(set(names(PAGE))))
def test_every_name_is_there(name: str) -> None:
    assert resolve(name) is not None


@pytest.mark.parametrize("path", sorted(set(PATH.findall(PAGE))))
def test_every_file_and_folder_is_there(path: str) -> None:
    assert list(PACKAGE.rglob(path.rstrip("/"))) or (ROOT / path).exists()


def test_the_four_walks_name_functions() -> None:
    walks = dict(sections())
    assert set(WALKS) <= set(walks)
    for title in WALKS:
        assert sum(callable(resolve(name)) for name in names(walks[title])) >= 6, title


def test_the_picture_is_what_the_linter_holds() -> None:
    picture = re.search(r"```\n(cli .*?)```", PAGE, re.DOTALL)
    assert picture is not None
    drawn = [re.split(r"\s{2,}", line)[0].split(" | ") for line in picture[1].splitlines()]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    assert drawn == [layer.split(" | ") for layer in layers]
    assert {room for line in drawn for room in line} == ROOMS - {"__init__", "__main__", "py"}


def test_every_file_name_occurs_once_in_the_package() -> None:
    files = [path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(files) == sorted(set(files))
    assert max(len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")) <= 300
