"""What vLLM serves and what it is refused for, asked without vLLM; the documentation shows the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniattn_pl.plan import ROLES, LayerPlan
from uniattn_pl.serving.vllm.support import SERVED_ROLES, engine_problems, plan_problems, support_table

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"
UNMODIFIED = LayerPlan.unmodified(4)
REUSING = UNMODIFIED.reuse([2], 1, compensated=True)
SINKS = UNMODIFIED.limit_window([2], 8, 2, compensated=False)
ON_CPU: dict[str, Any] = {
    "device": "cpu",
    "heads": 4,
    "kv_heads": 2,
    "head_size": 64,
    "head_sizes": [32, 64],
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "kv_cache_dtype": "auto",
    "quantization": None,
    "lora": False,
    "kv_transfer": False,
}


def config(**changes: Any) -> dict[str, Any]:
    plain = {"model_type": "uniattn_llama", "num_hidden_layers": 4, "hidden_act": "silu"}
    return plain | {"layer_plan": REUSING.to_dict()} | changes


def test_every_role_of_the_package_is_served_and_another_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(SERVED_ROLES) <= set(ROLES)
    monkeypatch.setitem(ROLES, "own_value", replace(ROLES["full"], gives=frozenset()))
    plan = UNMODIFIED.assign([1], "own_value")
    [problem] = plan_problems(config(layer_plan=plan.to_dict()))
    assert problem.startswith("layer 1 has the role 'own_value', which vLLM does not serve; it serves: full, reuse,")


def test_the_documentation_shows_the_table() -> None:
    assert support_table() in PAGE.read_text(encoding="utf-8")


def test_a_plan_of_a_served_family_has_no_problems() -> None:
    assert plan_problems(config()) == []
    assert engine_problems(REUSING, ON_CPU) == []
    aligned = REUSING.align_heads({2: (1, 0, 3, 3)})  # within what each of two workers has
    assert engine_problems(aligned, ON_CPU | {"tensor_parallel_size": 2}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "uniattn_phi3"}, "vLLM serves no plans of model_type 'uniattn_phi3'"),
        ({"model_type": "llama"}, "vLLM serves no plans of model_type 'llama'. It serves: uniattn_llama"),
        ({"layer_plan": None}, "needs a layer_plan"),
        ({"layer_plan": {"rows": []}}, "this is not a layer plan"),
        ({"num_hidden_layers": 5}, "the plan has 4 layers, the model 5."),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(changes: dict[str, Any], said: str) -> None:
    problems = plan_problems(config(**changes))
    assert len(problems) == 1
    assert said in problems[0]


@pytest.mark.parametrize(
    ("plan", "asked", "said"),
    [
        (REUSING, {"tensor_parallel_size": 4}, "the model's 4 heads, 2 of keys and values, must divide."),
        (
            UNMODIFIED.merge_heads([1], 1, compensated=False),
            {"tensor_parallel_size": 2},
            "tensor_parallel_size is 2; layer 1 has 1 heads of keys and values: each worker needs as many.",
        ),
        (
            REUSING.align_heads({2: (1, 0, 1, 3)}),
            {"tensor_parallel_size": 2},
            "tensor_parallel_size is 2; layer 2 uses maps of heads that another worker has.",
        ),
        (REUSING, {"pipeline_parallel_size": 2}, "pipeline_parallel_size is 2"),
        (REUSING, {"head_size": 8}, "the model's heads have size 8; vLLM's kernel takes 32, 64."),
        (REUSING, {"lora": True}, "LoRA adapters are not served beside a plan"),
        (REUSING, {"quantization": "awq"}, "quantization is 'awq'"),
        (REUSING, {"device": "cuda"}, "layer 2 has the role 'reuse', which is served on CPUs only, not on 'cuda'"),
        (
            REUSING,
            {"kv_transfer": True},
            "layer 2 has the role 'reuse', whose pages are its own: leave kv_transfer_config",
        ),
        (REUSING, {"kv_cache_dtype": "fp8"}, "layer 2 has the role 'reuse', whose cache is not kept in fp8"),
        (SINKS, {"device": "cuda"}, "layer 2 has a window with sinks, which is served on CPUs only, not on 'cuda'"),
    ],
)
def test_an_engine_that_cannot_serve_a_plan_is_refused(plan: LayerPlan, asked: dict[str, Any], said: str) -> None:
    problems = engine_problems(plan, ON_CPU | asked)
    assert len(problems) == 1
    assert said in problems[0]


@given(st.sets(st.sampled_from(["tensor_parallel_size", "pipeline_parallel_size", "lora", "quantization"])))
def test_every_problem_is_said_at_once(wrong: set[str]) -> None:
    asked = {name: {"lora": True, "quantization": "awq"}.get(name, 3) for name in wrong}
    assert len(engine_problems(UNMODIFIED, ON_CPU | asked)) == len(wrong)


def test_a_gpu_serves_what_goes_through_vllms_own_attention() -> None:
    plan = UNMODIFIED.drop([0], compensated=True).share_kv([2], 1, compensated=True)
    plan = plan.limit_window([3], 8, compensated=False)
    assert engine_problems(plan, ON_CPU | {"device": "cuda"}) == []


def test_it_can_be_asked_without_torch() -> None:
    code = (
        "import sys, uniattn_pl.serving.vllm.support; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
