"""docs/RESULTS.md, docs/results/, docs/claims.md and docs/families.md are what committed numbers say."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path

import jinja2
import pytest
from benchmarks.results import pages as result_pages
from benchmarks.results.measurement import Column, Measurement, cell_text
from benchmarks.results.pages import DATA, TEMPLATES, pages
from tests.docs.documented import ROOT

PAGES = pages()
FILES = sorted(DATA.glob("*.json"))

# A number that could be measured: one with decimals, a share, a time, a size.
UNITS = r"%|percent|ms|s|seconds|minutes|hours|[KMG]iB|nats|tokens/s"
MEASURED = re.compile(rf"(?<![\w.])-?\d[\d,]*\.\d+(?![\w.]*\d)|(?<![\w.,])\d[\d,]*(?= (?:{UNITS})(?![\w/]))")
PLACES = "section|theorem|assumption|propositions?"  # of the paper
NO_MEASUREMENT = {
    # names of models, packages, papers
    *("3.11", "2.13.0", "5.23.0", "0.1.2", "0.32", "Llama-3.1", "LLaMA-3.1", "arXiv 2502.00439"),
    # sizes that plans are asked for, by which rows are named; levels of intervals
    *("80 %", "60 %", "95 %", "100 %"),
    "0.8",  # of 1 / 0.8, arithmetic
    "24 GiB",  # a machine
}


@pytest.mark.parametrize("name", sorted(PAGES), ids=str)
def test_a_page_is_what_the_numbers_say(name: Path) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page == PAGES[name], "stale; run: python -m benchmarks.results"


def test_no_page_of_results_is_left_behind() -> None:
    assert sorted((ROOT / "docs" / "results").glob("*")) == [
        ROOT / "docs" / name for name in sorted(PAGES) if name.parts[0] == "results"
    ]


@pytest.mark.parametrize("file", sorted(TEMPLATES.rglob("*.md")), ids=lambda file: file.name)
def test_a_template_has_no_measured_number_of_its_own(file: Path) -> None:
    found = typed_numbers(file.read_text(encoding="utf-8"))
    assert not found, "put it into a file of benchmarks/results/data, and take it from there"


def typed_numbers(template: str) -> list[str]:
    """Numbers of its prose that could be measured ones: not in placeholders, in code or in addresses."""
    without = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|`[^`]*`|\]\([^)]*\)", " ", template, flags=re.DOTALL)
    without = re.sub(rf"(?i)\b({PLACES}) \d\.\d( and \d\.\d)?", " ", without)
    for known in sorted(NO_MEASUREMENT, key=len, reverse=True):
        without = re.sub(rf"(?<![\d.,]){re.escape(known)}(?![\d.]*\d)", " ", without)
    return MEASURED.findall(without)


def test_the_search_for_typed_numbers_finds_them() -> None:
    assert typed_numbers("a loss of 2.53, 12 % of 3 minutes and 624 MiB, Theorem 3.7") == ["2.53", "12", "3", "624"]
    assert typed_numbers("{{ m.row.loss }} nats of `x=0.5` at 4,096 tokens, 80 % of the cache") == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_measurement_says_where_it_comes_from_and_is_shown(file: Path) -> None:
    one = Measurement.read(file)
    assert one.title
    assert one.commands or one.note, "neither a command nor a word on what made it"
    quoted = not one.rows and not one.commands  # goals, and figures of the paper
    assert quoted or (one.model and one.machine and one.data)
    assert one.lead or one.seeds != 1, "one seed is a lead"
    used = rf"\b{one.name}\b"
    assert any(re.search(used, template.read_text(encoding="utf-8")) for template in TEMPLATES.rglob("*.md"))


def test_every_figure_of_a_file_is_on_a_page() -> None:
    """So that no number is kept that nobody sees."""
    templates = "\n".join(template.read_text(encoding="utf-8") for template in TEMPLATES.rglob("*.md"))
    for file in FILES:
        one = Measurement.read(file)
        shown = [name for name in one.figures if not re.search(rf"\.{name}\b|\"{name}\"", templates)]
        assert not shown, f"{file.name}: {shown}"
        if one.rows:
            whole = "\n".join(text for text in PAGES.values())
            assert one.table() in whole, f"{file.name}: its table is on no page"


def measurement(folder: Path, **changed: object) -> Path:
    content = {
        "title": "A loss",
        "commands": ["python -m uniattn_pl fit"],
        "model": "tiny",
        "data": "rows",
        "machine": "a CPU",
        "seeds": 1,
        "lead": True,
        "columns": [{"key": "row", "title": "row"}, {"key": "loss", "title": "loss", "unit": "nats"}],
        "rows": [{"key": "a", "row": "A", "loss": 2.5}, {"key": "b", "row": "B", "loss": {"value": 2.25}}],
        **changed,
    }
    file = folder / "one.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_templates_take_numbers_and_compute_with_them(tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    data = tmp_path / "data"
    data.mkdir()
    measurement(data, figures={"rows": 12345})
    page = templates / "page.md"
    page.write_text(
        "{{ one.a.loss - one.b.loss }}, {{ (one.b.loss / one.a.loss * 100) | to(1) }} %, {{ one.figures.rows }}"
    )
    text = pages(data, templates)[Path("page.md")]
    assert text.endswith("\n0.25, 90.0 %, 12,345")
    page.write_text("{{ one.a.los }}")
    with pytest.raises(jinja2.UndefinedError):
        pages(data, templates)
    page.write_text("{{ one.a }}")
    with pytest.raises(TypeError, match="no single number"):
        pages(data, templates)


def test_a_file_that_lacks_something_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a' has other cells"):
        Measurement.read(measurement(tmp_path, rows=[{"key": "a", "row": "A"}]))
    file = measurement(tmp_path)
    content = json.loads(file.read_text())
    del content["machine"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="machine missing"):
        Measurement.read(file)
    with pytest.raises(TypeError, match="machnie"):
        Measurement.read(measurement(tmp_path, machnie="a CPU"))


@pytest.mark.parametrize(
    ("column", "cell", "text"),
    [
        ({}, "3.50", "3.50"),
        ({}, '{"value": 3.65, "interval": [3.50, 3.80]}', "3.65 [3.50, 3.80]"),
        ({}, '{"value": 5.24, "quartiles": [5.1, 5.3], "bold": true}', "**5.24** (5.1-5.3)"),
        ({}, '{"value": 78, "range": [69, 86]}', "78 (69 to 86)"),
        ({"suffix": " %"}, "[100, 80]", "100 % / 80 %"),
        ({}, '{"show": "at most {} MiB", "values": [1965]}', "at most 1,965 MiB"),
        ({}, '"no room"', "no room"),
        ({"scale": Decimal(100), "decimals": 1, "suffix": " %"}, "0.80003", "80.0 %"),
        ({"decimals": 3}, '{"value": 2.57651, "sd": 0.0123, "n": 2}', "2.577 ± 0.012 (n=2)"),
        ({"significant": 3}, '{"value": 20.7312, "interval": [1.5, 21.25]}', "20.7 [1.5, 21.3]"),
    ],
)
def test_a_cell_is_shown_with_the_decimals_that_it_has(column: dict, cell: str, text: str) -> None:
    assert cell_text(Column("loss", "loss", **column), json.loads(cell, parse_float=Decimal)) == text


def test_check_says_which_page_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.results import __main__ as command

    monkeypatch.setattr(command, "DOCS", tmp_path)
    monkeypatch.setattr("sys.argv", ["results", "--check"])
    assert command.main() == 1
    assert "stale: docs/RESULTS.md; run: python -m benchmarks.results" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    result_pages.write(tmp_path)
    assert command.main() == 0
    assert capsys.readouterr().out == ""
