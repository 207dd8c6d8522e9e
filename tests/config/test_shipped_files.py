"""Every YAML file in configs/ and experiments/ loads, runs dry without a network, and says what the paper says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tests.once import load_once
from tests.packaged_parts import stand_in_for_gemma3

from uniattn_pl.architectures import LLMDrop, UniAttn
from uniattn_pl.cli import main
from uniattn_pl.config import LoadedConfig, load_config
from uniattn_pl.plan import LayerPlan, costs
from uniattn_pl.sweeps.points import load_points
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.training.planning import compile_plan

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "experiments" / "paper"
BLOCKS = sorted((ROOT / "configs").rglob("*.yaml"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))
PARTS = ("base.yaml", "rows.yaml", "medical.yaml", "general.yaml")  # what experiments include
RUNNABLE = [file for file in EXPERIMENTS if file.name not in PARTS]
HUB_DATA = {"axiong/pmc_llama_instructions": "pmc", "allenai/tulu-3-sft-mixture": "tulu3"}

ROWS = ["Pre-Trained", "Post-Train", "LLMDrop-Half", "LLMDrop-Full", "CLA-Half", "CLA-Full", "UniAttn"]
# KV retain rates of Tables 1 and 7, and learning rates of Tables 4 to 6
OF_32_LAYERS = dict(zip(ROWS, (100, 100, 81.25, 62.5, 81.25, 62.5, 81.25), strict=True))
OF_42_LAYERS = dict(zip(ROWS, (100, 100, 80.95, 64.29, 78.57, 64.29, 82.14), strict=True))
MODELS = {
    "llama-2-7b": ("table1", 2e-5, OF_32_LAYERS),
    "llama-3.1-8b": ("table1", 7e-6, OF_32_LAYERS),
    "mistral-7b": ("table7", 1e-6, OF_32_LAYERS),
    "gemma-2-9b": ("table7", 1e-6, OF_42_LAYERS),
}
# Tables 4 to 6 in the paper's own numbers, from 1: sources of the blocks, dropped layers
SUPERBLOCKS = {"llama-2-7b": [17, 21, 25, 29], "gemma-2-9b": [22, 26, 30, 34, 38]}
CLA_HALF = {"llama-2-7b": [25, 29], "gemma-2-9b": [30, 34, 38]}
DROPPED = {
    "llama-2-7b": [23, 20, 32, 27, 22, 24, 31, 29, 25, 30, 28, 26],
    "llama-3.1-8b": [19, 22, 20, 21, 27, 23, 30, 29, 28, 26, 24, 25],
    "mistral-7b": [17, 32, 31, 21, 22, 24, 29, 23, 28, 25, 27, 26],
    "gemma-2-9b": [29, 26, 21, 30, 27, 40, 38, 31, 32, 33, 35, 39, 36, 37, 34],
}


@pytest.fixture(autouse=True, scope="module")
def local_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Stand in for the files and the package that some experiments expect on the user's machine."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"instruction": "Count.", "input": f"to {n}", "output": "1 2 3"} for n in range(300)]
    (folder / "pmc_llama_instructions_1000.json").write_text(json.dumps(rows))
    (folder / "tulu3_sft_filtered_1000.json").write_text(
        json.dumps([{"input": row["input"], "output": row["output"]} for row in rows])
    )
    (folder / "wikitext2").mkdir()
    (folder / "wikitext2" / "wiki.test.raw").write_text("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIATTN_PL_DATA", str(folder))
        patch.setenv("UNIATTN_PL_EVALUATION_DATA", str(folder))
        load_once(patch)
        stand_in_for_gemma3(folder / "packages", patch)
        yield folder


@cache
def loaded(file: Path) -> LoadedConfig:
    """A file's config; each is loaded once, since that is what takes the time here."""
    return load_config([file])


@cache
def points_of(file: Path) -> dict[str, Point]:
    """The points of a sweep by name."""
    return {point.name: point for point in load_points([file], [], loaded(file))}


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", [*BLOCKS, *(f for f in EXPERIMENTS if f.name in PARTS)], ids=relative)
def test_a_building_block_loads(file: Path) -> None:
    assert file.read_text(encoding="utf-8").startswith("# "), "a shipped file opens with what it is"
    loaded(file)


@pytest.mark.parametrize("file", RUNNABLE, ids=relative)
def test_an_experiment_passes_the_dry_run_of_the_command_it_names(
    file: Path, local_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = file.read_text(encoding="utf-8")
    assert re.match(r"(# .*\n)+# Takes: ", text), "it opens with what it does and what that takes"
    command = re.search(rf"^# Run: .*uniattn-pl (\w+) --config {relative(file)}\b", text, re.MULTILINE)
    assert command is not None
    words = [command[1], "--config", str(file), "--dry-run"]
    monkeypatch.chdir(ROOT)  # bench.beside
    if command[1] == "fit":  # reads the rows, which the paper's experiments have from the hub
        source = loaded(file).config.data.source
        if source in HUB_DATA:
            words += [f"data.source={local_data}/pmc_llama_instructions_1000.json"]
    words += [f"trainer.default_root_dir={tmp_path}/run"]
    assert main(words) == 0, capsys.readouterr().err
    assert "dry run" in capsys.readouterr().out


def test_experiments_have_names_of_their_own() -> None:
    names = [loaded(file).config.name for file in RUNNABLE]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("setting", ["medical", "general"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_every_row_with_the_papers_cache_and_learning_rate(model: str, setting: str) -> None:
    table, learning_rate, rates = MODELS[model]
    points = points_of(PAPER / model / f"{table}_{setting}.yaml")
    assert list(points) == ROWS
    for name, point in points.items():
        config, (plan, shape) = point.loaded.config, compile_plan(point.loaded)
        assert 100 * costs.kv_retain_rate(plan, shape, length=512) == pytest.approx(rates[name], abs=0.005)
        training = config.training
        assert {training.stage1.learning_rate, training.stage2.learning_rate} == {learning_rate}
        assert (training.stage2.weight_decay, training.batch_size, training.stage2.max_epochs) == (0, 48, 1)
        assert training.stage2.enabled == (name != "Pre-Trained")
        assert training.stage1.enabled == (name == "UniAttn")
        assert config.calibration.initialiser == ("theorem37" if name == "UniAttn" else "zero")
        assert bool(plan.compensated) == (name == "UniAttn")
        assert config.evaluation.num_fewshot == (5 if (model, setting) == ("llama-2-7b", "general") else 0)
        tasks = {"medical": ["pubmedqa", "medmcqa", "medqa_4options"], "general": ["social_iqa", "commonsense_qa"]}
        assert config.evaluation.tasks == tasks[setting]
        assert config.data.format == {"medical": "pmc", "general": "tulu3"}[setting]


@pytest.mark.parametrize("model", MODELS)
def test_layers_are_those_of_the_paper_which_counts_from_1(model: str) -> None:
    points = points_of(PAPER / model / f"{MODELS[model][0]}_medical.yaml")

    def plan(name: str) -> LayerPlan:
        return compile_plan(points[name].loaded)[0]

    full = points["LLMDrop-Full"].loaded.architecture
    half = points["LLMDrop-Half"].loaded.architecture
    assert isinstance(full, LLMDrop)
    assert isinstance(half, LLMDrop)
    assert [layer + 1 for layer in full.layers] == DROPPED[model]
    assert half.layers == full.layers[: 8 if model == "gemma-2-9b" else 6]
    like = model if model in SUPERBLOCKS else "llama-2-7b"
    assert [layer + 1 for layer in sorted(plan("UniAttn").sources("map"))] == SUPERBLOCKS[like]
    assert [layer + 1 for layer in sorted(plan("CLA-Full").sources("key_value"))] == SUPERBLOCKS[like]
    assert [layer + 1 for layer in sorted(plan("CLA-Half").sources("key_value"))] == CLA_HALF[like]


def test_the_ablation_differs_in_what_w_c_is_when_the_full_fine_tune_begins() -> None:
    points = points_of(PAPER / "llama-3.1-8b" / "table2_ablation.yaml")
    said = {
        name: (
            len(compile_plan(point.loaded)[0].compensated),
            point.loaded.config.calibration.initialiser,
            point.loaded.config.training.stage1.enabled,
        )
        for name, point in points.items()
    }
    assert said == {
        "Post-Train": (0, "zero", False),
        "no-compensation": (0, "zero", False),
        "zero-init": (12, "zero", False),
        "theorem37": (12, "theorem37", False),
        "theorem37+fine-tune": (12, "theorem37", True),
    }


def test_the_further_tables_and_figures_vary_what_the_paper_varies() -> None:
    def architectures(name: str) -> list[UniAttn]:
        found = [point.loaded.architecture for point in points_of(PAPER / "llama-3.1-8b" / name).values()]
        return [architecture for architecture in found if isinstance(architecture, UniAttn)]

    assert [a.num_superblocks for a in architectures("figure4_superblocks.yaml")] == list(range(1, 9))
    sizes = architectures("figure4_size.yaml")
    assert [a.superblock_size for a in sizes] == [2, 3, 4, 5, 7, 13]
    assert {a.num_superblocks * (a.superblock_size - 1) for a in sizes} == {12}
    grouping = [
        (a.selection, a.num_superblocks * (a.superblock_size - 1)) for a in architectures("table9_grouping.yaml")
    ]
    assert grouping == [(selection, layers) for selection in ("top", "similarity") for layers in (3, 6, 9, 12)]
    assert [(a.compensation_input, a.compensation_output) for a in architectures("table8_placements.yaml")] == [
        ("attention_input", "attention_output"),
        ("attention_input", "layer_output"),
        ("attention_input", "heads"),
        ("value", "heads"),
    ]
    assert points_of(PAPER / "llama-3.1-8b" / "table3_h2o.yaml")["UniAttn"].loaded.config.evaluation.h2o == [
        0.8,
        0.6,
        0.4,
    ]


def test_both_tables_at_135m_train_every_row_for_as_many_steps() -> None:
    medical, general = (points_of(ROOT / f"experiments/smollm2/table1_{name}.yaml") for name in ("medical", "general"))
    assert list(medical) == list(general)
    assert set(ROWS) <= set(medical)
    for name in medical:
        for training in (table[name].loaded.config.training for table in (medical, general)):
            stages = (training.stage1, training.stage2)
            assert sum(stage.max_steps or 0 for stage in stages if stage.enabled) == (
                0 if name == "Pre-Trained" else 100
            )
