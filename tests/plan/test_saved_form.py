"""Plans in files: this version's form, and every file that the version of format 1 left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.parity import stock_llama
from tests.search.test_search import Batch, batches
from transformers import AutoModelForCausalLM

from uniattn_pl.architectures import Given
from uniattn_pl.calibration import calibrate, streaming
from uniattn_pl.config import load_config
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import Compensation, LayerPlan, LayerRow, PlanError
from uniattn_pl.resilience.manifest import Manifest, key_of
from uniattn_pl.search.model_measurements import ModelMeasurements
from uniattn_pl.tracking.tags import plan_digest

FORMER = Path(__file__).parents[1] / "fixtures" / "format_1"
ROW: dict[str, Any] = {"index": 1, "map_from": 0, "key_from": None, "value_from": 1}
PLACED = Compensation("value", "heads", rank=3)
MODEL_PLAN = LayerPlan(
    (
        LayerRow(0),
        LayerRow(1, "reuse", 0, PLACED),
        LayerRow(2, "reuse", 0, PLACED, heads_from=(1, 0, 3, 3)),
        LayerRow(3),
        LayerRow(4, "share_kv", 3, Compensation(rank=3)),
        LayerRow(5, "drop", None, Compensation(rank=3)),
    )
)


def tokens(number: int, after: int) -> list[Batch]:
    """As the search in the fixture had them."""
    return batches()[1:] if after else batches()[:1]


def search(folder: Path, evaluations: list[str]) -> LayerPlan:
    """The search of the fixture."""
    model = stock_llama()
    measurements = ModelMeasurements(
        model,
        shape_of(model.config),
        tokens,
        num_tokens=40,
        ridge=1e-2,
        folder=folder,
        progress=lambda done, total, text: evaluations.append(text),
    )
    kinds = ["reuse", "share_kv", "drop"]
    return measurements.greedy(
        kinds=kinds, cost="kv_bytes", length=96, budget=0.7, compensated=True, candidates=4, tokens=40
    )


def test_a_saved_plan_says_its_format_and_its_roles() -> None:
    plan = LayerPlan.unmodified(3).reuse([1], 0, compensated=True).drop([2], compensated=False)
    assert plan.to_dict() == {
        "format": 2,
        "num_layers": 3,
        "rows": [
            {
                "index": 1,
                "role": "reuse",
                "source": 0,
                "compensation": {
                    "input": "attention_input",
                    "output": "attention_output",
                    "rank": None,
                    "bias": False,
                },
                "heads_from": None,
            },
            {"index": 2, "role": "drop", "source": None, "compensation": None, "heads_from": None},
        ],
    }


def test_a_model_folder_of_the_former_version_loads_and_gives_its_logits(tmp_path: Path) -> None:
    folder = shutil.copytree(FORMER / "model", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.layer_plan == MODEL_PLAN
    expected = load_file(FORMER / "expected.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(expected["ids"]).logits, expected["logits"], rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())["layer_plan"]
    assert saved["format"] == 2
    assert LayerPlan.from_dict(saved) == MODEL_PLAN


def test_plan_files_of_the_former_version_are_given_as_they_were() -> None:
    model = stock_llama()
    plans = [Given(plan=str(file)).compile(shape_of(model.config)) for file in sorted(FORMER.glob("frontier/plans/*"))]
    assert [plan.operated for plan in plans] == [(), (6,), (4, 6), (2, 4, 6)]
    roles = [plans[-1].rows[layer].role for layer in plans[-1].operated]
    assert roles == ["reuse", "drop", "share_kv"]
    assert [plans[-1].rows[layer].source for layer in plans[-1].operated] == [1, None, 5]


def test_runs_of_the_former_version_are_found_by_their_plan() -> None:
    """Digests that it gave its runs in MLflow as tags."""
    assert plan_digest(MODEL_PLAN) == "1451486128c3"
    frontier = LayerPlan.from_dict(json.loads((FORMER / "frontier/plans/03.json").read_text()))
    assert plan_digest(frontier) == "7ce43537019a"


def test_a_search_that_the_former_version_began_goes_on(tmp_path: Path) -> None:
    shutil.copytree(FORMER / "search", tmp_path, dirs_exist_ok=True)
    before = [(point["layer"], point["kind"]) for point in json.loads(record(tmp_path).read_text())["points"]]
    assert before == [(None, None), (6, "share"), (4, "drop")]
    resumed: list[str] = []
    plan = search(tmp_path, resumed)
    expected = json.loads((FORMER / "frontier/plans/03.json").read_text())
    assert plan == LayerPlan.from_dict(expected)
    from_the_start: list[str] = []
    assert search(tmp_path / "anew", from_the_start) == plan
    assert len(resumed) < len(from_the_start) / 2
    assert len(list(tmp_path.glob("record-*.json"))) == 1, "the same file is continued"


def record(folder: Path) -> Path:
    (file,) = folder.glob("record-*.json")
    return file


def test_a_calibration_that_the_former_version_began_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(FORMER / "calibration", tmp_path / "calibration")
    plan = LayerPlan.unmodified(8).reuse([5, 6, 7], 4, compensated=True)
    original = stock_llama()
    resumed, anew = converted_copy(original, plan), converted_copy(original, plan)
    solvers: list[str] = []
    make = streaming.make_solver
    monkeypatch.setattr(streaming, "make_solver", lambda *args, **kw: (solvers.append(args[0]), make(*args, **kw))[1])
    calibrate(original, resumed, batches(), batches()[:1], record=folder)
    assert len(solvers) == 1, "layers 5 and 6 are not solved again"
    assert {file.name for file in folder.glob("layer-*")} == {f"layer-00{layer}.safetensors" for layer in (5, 6, 7)}
    calibrate(original, anew, batches(), batches()[:1])
    assert len(solvers) == 1 + 3
    for name, expected in anew.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], expected, rtol=0, atol=1e-5)


def test_a_manifest_of_the_former_version_is_of_the_same_experiment(tmp_path: Path) -> None:
    config = {"architecture": {"name": "search", "kinds": ["reuse", "share", "drop"]}}
    Manifest(config).write(tmp_path)
    manifest = Manifest.read(tmp_path)
    assert manifest is not None
    manifest.check_same_config({"architecture": {"name": "search", "kinds": ["reuse", "share_kv", "drop"]}}, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"map_from": 1, "key_from": 1, "value_from": 0}, "layer 1 has its own keys but the values of another layer"),
        ({"map_from": 1, "key_from": 0, "value_from": 1}, "layer 1 takes keys and values from different layers"),
        ({"key_from": 1}, "layer 1 reuses a map and must use its own values and no keys"),
        ({"dropped": True}, "layer 1 is dropped but still reads attention"),
        ({"map_from": 1, "key_from": 1, "compensated": True}, "layer 1 computes its own attention and cannot carry"),
        ({"map_from": 2}, "layer 1 reads from layer 2, which is not below it"),
        ({"compensated": True, "compensation_input": "head"}, "layer 1: .* Did you mean 'heads'"),
        ({"compensated": True, "compensation_rank": "4"}, "not a whole number"),
        ({"map_form": 1}, "map_form"),
        ({"map_from": "one"}, "layer plan|which is not in the model|not below"),
        ({"index": 3}, "there is no layer 3"),
    ],
)
def test_impossible_rows_of_the_former_version_are_refused_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        LayerPlan.from_dict({"num_layers": 3, "rows": [ROW | changed]})


def test_a_plan_of_a_later_version_is_refused() -> None:
    with pytest.raises(PlanError, match="has format 3; this version reads formats 1 and 2"):
        LayerPlan.from_dict({"format": 3, "num_layers": 2, "rows": []})


@pytest.mark.parametrize(("architecture", "key"), [("search", "41983f88909a3c8a"), ("uniattn", "f0a0ecddf3a7afeb")])
def test_experiments_have_the_keys_that_the_former_version_gave_their_runs(architecture: str, key: str) -> None:
    """Reports and sweeps find a fit's MLflow run by it."""
    assert key_of(plain_config(load_config([], [f"architecture={architecture}"]))) == key


@pytest.mark.parametrize("count", [10**12, 10_001, 0, -1])
def test_a_damaged_number_of_layers_takes_no_memory(count: int) -> None:
    with pytest.raises(PlanError, match=f"num_layers is {count}; a plan has 1 to 10000 layers"):
        LayerPlan.from_dict({**LayerPlan.unmodified(4).to_dict(), "num_layers": count})


def test_an_infinite_number_of_layers_is_no_plan() -> None:
    with pytest.raises(PlanError):
        LayerPlan.from_dict({**LayerPlan.unmodified(4).to_dict(), "num_layers": float("inf")})
