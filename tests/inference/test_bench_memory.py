"""`bench` asks for no more memory than there is: it says what it would need, and what fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.families.catalogue import named_model
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.inference import bench_memory
from uniattn_pl.inference.bench_memory import free_bytes, longest_fitting, prefill_bytes
from uniattn_pl.modeling.loading.pretrained import load_model_config
from uniattn_pl.plan import LayerPlan, costs

CONFIG = load_config([], ["model.source=tiny-llama", "model.dtype=float32"]).config
EAGER = load_config([], ["model.source=tiny-llama", "bench.backends=[sdpa, eager]"]).config
SHAPE = shape_of(load_model_config(str(named_model("tiny-llama"))))
PLAN = LayerPlan.stock(SHAPE)
GIB = 2**30


@given(st.integers(0, 64 * GIB), st.integers(1, 64), st.sampled_from([CONFIG, EAGER]))
def test_what_is_said_to_fit_does_and_one_token_more_does_not(free: int, batch_size: int, config: object) -> None:
    fits = longest_fitting(config, SHAPE, batch_size, free)  # type: ignore[arg-type]
    assert fits == 0 or prefill_bytes(config, SHAPE, batch_size, fits) <= free  # type: ignore[arg-type]
    assert prefill_bytes(config, SHAPE, batch_size, fits + 1) > free  # type: ignore[arg-type]


def test_the_estimate_holds_weights_and_cache_and_under_eager_attention_a_map() -> None:
    weights, cache = (
        4 * costs.parameters(PLAN, SHAPE),
        costs.kv_cache_bytes(PLAN, SHAPE, batch_size=2, length=1000, bytes_per_element=4),
    )
    assert prefill_bytes(CONFIG, SHAPE, 2, 1000) > weights + cache
    heads = SHAPE.layers[0].heads.queries
    assert prefill_bytes(EAGER, SHAPE, 2, 1000) > 2 * heads * 1000**2


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_memory, "free_bytes", lambda _: GIB)
    words = ["bench", "model.source=tiny-llama", "model.dtype=float32", "architecture.num_superblocks=1"]
    assert main([*words, "bench.lengths=[64, 16000000]"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 x 16,000,000 tokens needs about" in line
    assert f"1 GiB are free on cpu; at most {longest_fitting(CONFIG, SHAPE, 1, GIB):,} tokens fit." in line
    assert main([*words, "bench.lengths=[64, 16000000]", "--dry-run"]) == 0, (
        "that it is planned elsewhere is no mistake"
    )
    assert "as it is now, it would not start: bench.lengths: " in capsys.readouterr().err
    assert main([*words, "bench.lengths=[4000]", "--dry-run"]) == 0
    assert "4000 tokens are more than the 2048 positions" in capsys.readouterr().err


def test_this_machine_says_what_is_free() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 2**20


@pytest.mark.parametrize("version", [0, 1])
def test_what_a_container_can_give_back_is_free(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, limit, used, pages = bench_memory.CGROUPS[version]
    for name, text in ((limit, "5000"), (used, "4000"), ("memory.stat", f"anon 1\n{pages} 3000\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(bench_memory, "CGROUPS", ((tmp_path, limit, used, pages),))
    assert free_bytes(torch.device("cpu")) == 4000
    (tmp_path / limit).write_text("max")
    assert int(free_bytes(torch.device("cpu")) or 0) > 4000
