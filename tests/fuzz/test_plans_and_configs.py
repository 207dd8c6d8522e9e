"""Whatever is in a plan file or an experiment file: a plan, a config, or sentences that name the file."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.drawn import changed_bytes, changed_json, in_bounds, used_or_refused, written
from uniattn_pl.architectures import UniAttn
from uniattn_pl.architectures.given import Given
from uniattn_pl.config.load import load_config
from uniattn_pl.modeling.loading.pretrained import load_shape
from uniattn_pl.plan import LayerPlan

SHAPE = load_shape("tiny-llama")
PLAN = UniAttn(superblock_size=2, num_superblocks=2).compile(SHAPE).to_dict()
FORMER = json.loads((Path(__file__).parents[1] / "fixtures/format_1/model/config.json").read_text())["layer_plan"]
EXPERIMENTS = [
    path.read_bytes() for path in sorted((Path(__file__).parents[2] / "experiments").rglob("*.yaml"))
]  # they include one another, by paths that the drawn file does not have


@in_bounds
@given(changed_json(PLAN).map(written) | changed_json(FORMER).map(written) | changed_bytes([written(PLAN)]))
def test_plan_files(folder: Path, content: bytes) -> None:
    (folder / "plan.json").write_bytes(content)

    def use() -> None:
        plan = Given(plan=str(folder / "plan.json")).compile(SHAPE)
        assert isinstance(plan, LayerPlan)

    used_or_refused("plan.json", use)


@in_bounds
@given(changed_bytes(EXPERIMENTS))
def test_experiment_files(folder: Path, content: bytes) -> None:
    (folder / "drawn.yaml").write_bytes(content)
    used_or_refused("drawn.yaml", lambda: load_config([folder / "drawn.yaml"]))


config = {
    "name": "tiny",
    "seed": 1,
    "model": {"source": "tiny-llama", "dtype": "float32", "revision": None, "map_memory_mib": 10},
    "architecture": {"name": "uniattn", "superblock_size": 2, "num_superblocks": 2},
    "data": {"source": "embedded", "num_samples": 40, "validation_size": 8, "max_length": 64},
    "calibration": {"num_samples": 4, "batch_size": 2, "initialiser": "linear_closed_form"},
    "training": {"batch_size": 4, "precision": "32-true", "stage1": {"enabled": True, "max_steps": 1}},
    "trainer": {"accelerator": "cpu", "default_root_dir": "runs/x"},
    "tracking": {"uri": "sqlite:///m.db"},
}


@in_bounds
@given(changed_json(config).map(written), st.booleans())
def test_experiments_of_any_values(folder: Path, content: bytes, architecture: bool) -> None:
    (folder / "values.yaml").write_bytes(content)  # JSON is YAML
    used_or_refused("values.yaml", lambda: load_config([folder / "values.yaml"]))
