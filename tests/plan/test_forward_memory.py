"""The estimate of memory without gradients, beside the peaks that an H100 has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from uniattn_pl.architectures import get_architecture
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.families.published_sizes import published_config
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.forward_memory import calibration_memory, inference_memory

MEASURED = Path(__file__).parents[2] / "benchmarks" / "gpu" / "2026-11-26_h100.json"
BLOCKS = {"superblock_size": 4, "num_superblocks": 4}
DROPPED = [18, 21, 19, 20, 26, 22, 29, 28, 27, 25, 23, 24]  # benchmarks/gpu/costs.py
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "stock": ("baseline", {}),
    "uniattn": ("uniattn", BLOCKS),
    "uniattn without W_c": ("uniattn", {**BLOCKS, "compensation": False}),
    "cla": ("cla", BLOCKS),
    "llmdrop": ("llmdrop", {"layers": DROPPED}),
}


def llama_8b() -> ModelShape:
    config = published_config("meta-llama/Llama-3.1-8B")
    assert config is not None
    return shape_of(config)


@pytest.mark.parametrize("name", MODELS)
def test_a_prefill_takes_what_the_card_has_measured(name: str) -> None:
    shape = llama_8b()
    architecture, options = MODELS[name]
    plan = get_architecture(architecture)(**options).compile(shape)
    rows = [row for row in json.loads(MEASURED.read_text())["rows"] if row["what"] == "ttft" and row["model"] == name]
    assert len(rows) == 3
    for row in rows:
        memory = inference_memory(plan, shape, batch_size=1, length=row["tokens"], chunk=2**15, element_bytes=2)
        assert memory.cache == row["kv_bytes"]
        assert memory.total / 2**30 == pytest.approx(row["peak_gib"], rel=0.04), row["tokens"]


def test_chunks_bound_what_a_prompt_needs_besides_its_cache() -> None:
    shape = llama_8b()
    plan = LayerPlan.unmodified(shape.num_layers)
    sizes = {"batch_size": 2, "chunk": 1024, "element_bytes": 2}
    short, long = (inference_memory(plan, shape, length=length, **sizes) for length in (1024, 8192))
    assert long.activations == short.activations
    assert long.cache == 8 * short.cache


@pytest.mark.parametrize(("initialiser", "features"), [("joint_least_squares", 2), ("least_squares", 1), ("zero", 0)])
def test_the_sums_of_a_calibration_are_those_of_its_features(initialiser: str, features: int) -> None:
    shape = llama_8b()
    plan = get_architecture("uniattn")(**BLOCKS).compile(shape)
    sizes = {"batch_size": 8, "length": 512, "element_bytes": 2, "initialiser": initialiser}
    few, many = (calibration_memory(plan, shape, sequences=count, **sizes) for count in (100, 1000))
    n, d = features * shape.hidden_size, shape.hidden_size
    assert few.sums == 8 * n * (3 * n + 2 * d)
    assert few.on_device == many.on_device, "the device's part does not grow with the rows"
    assert many.streams == 10 * few.streams
