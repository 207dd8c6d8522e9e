"""docs/api.md is what the docstrings say, of every public name."""

from __future__ import annotations

import inspect
import re

import pytest
from tests.docs.documented import ROOT

import uniattn_pl
from uniattn_pl.api.api_page import GROUPS, api_page
from uniattn_pl.cli import main

EXPLAINED = re.compile(r"^- ((?:`\w+`(?:, )?)+): ", re.MULTILINE)


def test_the_page_is_what_the_docstrings_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "api"]) == 0
    printed = capsys.readouterr().out
    assert printed == api_page()
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == printed, "stale; run: uniattn-pl list api > docs/api.md"


def test_every_public_name_is_on_it_once_with_all_its_arguments() -> None:
    named = [name for names in GROUPS.values() for name in names]
    assert sorted(named) == sorted(set(uniattn_pl.__all__) - {"__version__"})
    page = api_page()
    for name in named:
        _, _, entry = page.partition(f"\n### `{name}`\n")
        entry = entry.partition("\n### ")[0]
        _, code, said, *_ = entry.split("```")
        assert code.startswith(f"text\nuniattn_pl.{name}(")
        assert said.strip(), f"{name} has no docstring"
        explained = {word for line in EXPLAINED.findall(entry) for word in re.findall(r"\w+", line)}
        taken = inspect.signature(getattr(uniattn_pl, name)).parameters
        assert [argument for argument in taken if argument not in explained] == [], name
