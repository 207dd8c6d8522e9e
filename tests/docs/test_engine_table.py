"""The table of engines in docs/serving.md is what the code says, and so is `list engines`."""

from __future__ import annotations

import pytest
from tests.docs.documented import ROOT

from uniattn_pl.cli import main
from uniattn_pl.commands.engine_table import KINDS, engine_markdown
from uniattn_pl.plan.roles import OTHER, ROLES


def test_the_documented_table_is_what_the_engines_are_asked() -> None:
    assert engine_markdown() in (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def test_every_role_of_a_llama_is_in_it() -> None:
    assert {row.role for plan in KINDS.values() for row in plan.rows} == ROLES.keys() - {OTHER}


def test_list_engines_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "engines"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (reuse,) = (line for line in lines if line.strip().startswith("reuse"))
    assert reuse.split() == ["reuse", "yes", "yes", *["-"] * 7]
