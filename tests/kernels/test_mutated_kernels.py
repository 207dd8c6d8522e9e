"""The comparisons with the formula notice what could go wrong: each kernel is changed in one place, and must fail."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.kernels import test_rows, test_tiled
from tests.kernels.formula import Drawn
from tests.kernels.interpreter import NEEDS_TRITON, runs_on

from uniattn_pl.kernels.triton_maps.tile_layout import MaskStructure

pytestmark = NEEDS_TRITON
TILED, ROWS = "tiled_kernels", "row_kernels"
MUTATIONS = {
    "a source that does not rescale what it has": (TILED, "result = result * shrink[:, None] +", "result = result +"),
    "a source whose sum is not rescaled": (TILED, "total = total * shrink +", "total = total +"),
    "the diagonal shifted by one": (TILED, "place[None] <= last_seen[:, None])", "place[None] < last_seen[:, None])"),
    "a window too wide by one": (TILED, "> last_seen[:, None] - window", ">= last_seen[:, None] - window"),
    "padding that is seen": (TILED, "(place[None] >= start)", "(place[None] >= 0)"),
    "a reader that does not rescale": (TILED, "tl.exp2(tile_maximum - row_lse)", "tl.exp2(-row_lse)"),
    "a reader with the values of another group": (TILED, "(head // group).to(tl.int64) * v_head", "0 * v_head"),
    "a reader whose heads are not aligned": (TILED, "source_head = tl.load(heads_from + head)", "source_head = head"),
    "sinks that are left out": (
        TILED,
        "total = tl.full([rows], 1.0, tl.float32)",
        "total = tl.zeros([rows], tl.float32)",
    ),
    "parts of a row that are not rescaled": (
        ROWS,
        "weights = tl.exp2(part_maxima - largest)",
        "weights = part_maxima * 0 + 1",
    ),
    "blocks of a row that are not rescaled": (ROWS, "result = result * shrink[:, None] +", "result = result +"),
    "a row's reader without lse": (ROWS, "tl.exp2(scores - row_lse[:, None])", "tl.exp2(scores)"),
    "a row that sees what is masked": (ROWS, "mask=seen, other=0) != 0", "mask=seen, other=0) >= 0"),
    "a row that loses its last key": (ROWS, "seen = place < keys\n", "seen = place < keys - 1\n"),
    "a row's sinks that are left out": (ROWS, "total += tl.exp2(sink - largest)", "total += 0.0"),
}


def mutated(folder: Path, name: str, line: str, instead: str) -> ModuleType:
    """The module of kernels `name` with one line changed, interpreted."""
    package = "uniattn_pl.kernels.triton_maps"
    own = importlib.util.find_spec(f"{package}.{name}")
    assert own is not None
    assert own.origin is not None
    source = Path(own.origin).read_text(encoding="utf-8")
    assert line in source, "the kernel says this no longer: say what it says now"
    file = folder / f"mutated_{name}.py"
    file.write_text(source.replace(line, instead), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_of_a_kernel_is_noticed(
    device: str, mutation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_on(device)
    name, line, instead = MUTATIONS[mutation]
    if not torch.cuda.is_available():
        monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    module = mutated(tmp_path, name, line, instead)
    check = check_tiled if name == TILED else check_rows
    check(device)
    monkeypatch.setitem(sys.modules, f"uniattn_pl.kernels.triton_maps.{name}", module)
    with pytest.raises(AssertionError):
        check(device)


def check_tiled(device: str) -> None:
    """One case in which everything counts: sinks, a window, padding, groups, scores that rise."""
    drawn = Drawn.make(2, 2, 2, 40, 48, 64, sinks=torch.tensor([1.0, 0.0, 2.0, 3.0])).to(device)
    drawn.key.mul_(torch.linspace(0, 4, 48, device=device)[:, None])
    starts = torch.tensor([0, 30], dtype=torch.int32, device=device)
    test_tiled.on_both(drawn, MaskStructure(8, 21, starts), torch.float32, test_tiled.SMALL)


def check_rows(device: str) -> None:
    drawn = Drawn.make(2, 2, 2, 1, 300, 64, sinks=torch.tensor([1.0, 0.0, 2.0, 3.0])).to(device)
    drawn.key.mul_(torch.linspace(0, 4, 300, device=device)[:, None])
    test_rows.on_both(drawn, test_rows.visible(drawn, "padded"))
