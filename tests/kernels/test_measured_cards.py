"""The table of what was measured on cards: who wins where, and how it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uniattn_pl.kernels.triton_maps import measured_cards
from uniattn_pl.kernels.triton_maps.measured_cards import (
    MeasuredTiles,
    faster_tiles,
    own_table,
    read_table,
    tiles_for,
    write_table,
)
from uniattn_pl.kernels.triton_maps.tile_layout import TileShape

ROW = MeasuredTiles("a card", "bfloat16", 128, 4096, stock_ms=1.0, source_ms=1.4, reader_ms=0.8, shape=TileShape())


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path))
    measured_cards._tables.cache_clear()
    yield own_table()
    measured_cards._tables.cache_clear()


def test_a_source_that_costs_more_pays_with_enough_readers() -> None:
    assert not ROW.faster(1)  # 1.4 + 0.8 against 2
    assert ROW.faster(3)  # 1.4 + 2.4 against 4
    assert faster_tiles([ROW], length=4096, readers=3) == TileShape()
    assert faster_tiles([ROW], length=4096, readers=1) is None


def test_nothing_is_kept_at_lengths_shorter_than_measured_ones() -> None:
    assert faster_tiles([ROW], length=4095, readers=3) is None
    assert faster_tiles([ROW], length=9000, readers=3) is not None
    slow = replace(ROW, length=8192, reader_ms=2.0)
    assert faster_tiles([ROW, slow], length=9000, readers=3) is None, "the longest measured length says no"


times = st.floats(0.01, 100)


@given(times, times, times, st.integers(1, 8))
def test_tiles_are_never_chosen_where_they_are_slower(stock: float, source: float, reader: float, readers: int) -> None:
    row = replace(ROW, stock_ms=stock, source_ms=source, reader_ms=reader)
    if faster_tiles([row], length=4096, readers=readers) is not None:
        assert source + readers * reader < (1 + readers) * stock


def test_a_machine_without_measurements_keeps_nothing(own: Path) -> None:
    assert tiles_for("another card", torch.bfloat16, 128, 8192, 3) is None


def test_what_was_measured_here_is_used_at_once_and_replaces_what_was(own: Path) -> None:
    write_table(own, [ROW])
    assert tiles_for("a card", torch.bfloat16, 128, 8192, 3) == TileShape()
    assert tiles_for("a card", torch.float16, 128, 8192, 3) is None
    other = replace(ROW, head_dim=64)
    write_table(own, [other])
    write_table(own, [replace(ROW, stock_ms=0.1)])
    assert sorted(row.head_dim for row in read_table(own)) == [64, 128]
    assert tiles_for("a card", torch.bfloat16, 128, 8192, 3) is None


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"card": "x"}]', "not JSON"])
def test_a_damaged_table_is_none(own: Path, text: str) -> None:
    own.parent.mkdir(exist_ok=True)
    own.write_text(text)
    assert read_table(own) == []


def test_the_packaged_table_can_be_read() -> None:
    assert isinstance(read_table(measured_cards.PACKAGED), list)
    assert measured_cards.PACKAGED.is_file()
