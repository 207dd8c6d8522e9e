"""`bench.tune_kernels` measures tiles against the fused kernel and keeps what it found, which `auto` then goes by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.kernels.interpreter import NEEDS_TRITON, interpreted, runs_on
from tests.tiny_models import stock

from uniattn_pl.cli import main
from uniattn_pl.inference import tune_kernels as module
from uniattn_pl.inference.tune_kernels import measured_tiles, tune_kernels
from uniattn_pl.kernels.triton_maps import measured_cards
from uniattn_pl.kernels.triton_maps.measured_cards import own_table, read_table
from uniattn_pl.kernels.triton_maps.tile_layout import TileShape

pytestmark = NEEDS_TRITON
SMALL = (TileShape(rows=32, columns=16, warps=2, stages=1), TileShape(rows=16, columns=16, warps=2, stages=1))


def test_what_is_measured_is_kept_and_read(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs_on(device)
    interpreted(monkeypatch)
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "SHAPES", SMALL)
    measured_cards._tables.cache_clear()
    tune_kernels(stock("llama").to(device), [48, 16, 48], rounds=2, console=Console())
    rows = read_table(own_table())
    assert [row.length for row in rows] == [16, 48]
    assert {(row.dtype, row.head_dim) for row in rows} == {("float32", 8)}
    assert all(row.shape in SMALL and min(row.stock_ms, row.source_ms, row.reader_ms) > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "kept by auto" in printed
    assert str(tmp_path) in printed.replace("\n", "")
    measured_cards._tables.cache_clear()


def test_a_shape_that_does_not_fit_the_card_is_left_out(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_on(device)
    own = module.tiled_attention

    class OutOfResources(Exception):
        """As Triton raises it."""

    def refuse(*args: torch.Tensor, shape: TileShape) -> object:
        if shape == SMALL[0]:
            raise OutOfResources
        return own(*args, shape=shape)

    monkeypatch.setattr(module, "tiled_attention", refuse)
    query, key = torch.randn(1, 4, 20, 16, device=device), torch.randn(1, 2, 20, 16, device=device)
    assert measured_tiles("a card", query, key, key, rounds=1, shapes=SMALL).shape == SMALL[1]


def test_without_a_card_it_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.yaml").write_text(
        "name: b\nmodel: {source: tiny-llama}\ntrainer: {accelerator: cpu, devices: 1}\n"
        "architecture: {name: baseline}\nbench: {tune_kernels: true, lengths: [8]}\n"
    )
    assert main(["bench", "--config", "b.yaml"]) == 2
    assert "bench.tune_kernels measures Triton kernels on a CUDA card" in capsys.readouterr().err
