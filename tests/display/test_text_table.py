"""A table fits the terminal it is printed in, and loses nothing by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniattn_pl.cli import main
from uniattn_pl.display.text_table import print_text, table_text
from uniattn_pl.display.text_width import output_width

COLUMNS = ("model", "tokens", "what it does")
ROWS = [
    ("uniattn", "512", "Superblocks with one attention map each; W_c repairs the error (the paper's method)"),
    ("cla", "8192", "blocks of layers share the keys and values of their bottom layer"),
]
CELLS = st.text("ab 1é", max_size=40)
TABLES = st.integers(1, 7).flatmap(
    lambda count: st.tuples(
        st.lists(st.text("abc", min_size=1, max_size=12), min_size=count, max_size=count),
        st.lists(st.lists(CELLS, min_size=count, max_size=count), max_size=4),
    )
)


def words(text: str) -> list[str]:
    return sorted(set(text.split()))


@given(TABLES, st.integers(60, 120))
def test_no_line_is_longer_than_the_terminal_and_every_word_is_there(
    table: tuple[list[str], list[list[str]]], width: int
) -> None:
    columns, rows = table
    lines = table_text("A title", columns, rows, width=width)
    assert max(map(len, lines)) <= width
    shown = words(" ".join(lines))
    assert set(words(" ".join([*columns, *(cell for row in rows for cell in row)]))) <= set(shown)


def test_long_text_goes_over_several_lines_beside_its_row() -> None:
    assert table_text("Known", COLUMNS, ROWS, width=60) == [
        "Known",
        "  model    tokens  what it does",
        "  uniattn     512  Superblocks with one attention map each;",
        "                   W_c repairs the error (the paper's",
        "                   method)",
        "  cla        8192  blocks of layers share the keys and",
        "                   values of their bottom layer",
    ]


def test_too_many_columns_are_printed_in_parts_behind_the_first() -> None:
    columns = ("model", *(f"column {number}" for number in range(8)))
    lines = table_text("Wide", columns, [("uniattn", *(str(10**8 + n) for n in range(8)))], width=60)
    assert sum(line.lstrip().startswith("model") for line in lines) == 2
    assert sum(line.lstrip().startswith("uniattn") for line in lines) == 2
    assert all(str(10**8 + n) in "\n".join(lines) for n in range(8))


def test_without_a_limit_a_row_is_a_line() -> None:
    assert len(table_text("Known", COLUMNS, ROWS)) == 1 + 1 + len(ROWS)


def test_a_file_has_no_limit_and_a_terminal_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert output_width() is None
    monkeypatch.setenv("COLUMNS", "72")
    assert output_width() == 72


def test_a_paragraph_is_broken_at_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_text("one sentence that is longer than forty columns are", indent="  ")
    assert capsys.readouterr().out == "one sentence that is longer than forty\n  columns are\n"


@pytest.mark.parametrize("topic", ["architectures", "families", "models", "initialisers", "engines", "options"])
def test_every_list_fits_80_columns(
    topic: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", topic]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_wide_lets_a_table_be_as_wide_as_it_is_for_one_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    longest = []
    for words in (["list", "families", "--wide"], ["list", "families"]):
        assert main(words) == 0
        longest.append(max(map(len, capsys.readouterr().out.splitlines())))
    assert longest[0] > 80 >= longest[1]


def test_a_plan_fits_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ["model.source=tiny-llama", "architecture.num_superblocks=1", "--card", "h100"]
    assert main(["plan", *words]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
