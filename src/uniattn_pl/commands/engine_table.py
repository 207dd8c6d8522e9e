"""Which engine serves which kind of layer: asked of the code that refuses the others, on a plan with one such layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from uniattn_pl.plan import LayerPlan

LAYERS, CHANGED = 4, 2
OWN, VLLM_CPU, VLLM_GPU, LLAMA_CPP = "serve", "vLLM, CPU", "vLLM, GPU", "llama.cpp"
DECILM_PREFIX = "DeciLM: "
YES, UNTRIED, NO = "yes", "not run", "-"
_PLAIN = LayerPlan.unmodified(LAYERS)
KINDS: dict[str, LayerPlan] = {
    "full": _PLAIN,
    "drop": _PLAIN.drop([CHANGED], compensated=False),
    "drop, the first layer": _PLAIN.drop([0], compensated=False),
    "drop with W_c": _PLAIN.drop([CHANGED], compensated=True),
    "drop with W_c and a bias": _PLAIN.drop([CHANGED], compensated=True).add_bias(),
    "skip": _PLAIN.skip([CHANGED], compensated=False),
    "skip with W_c": _PLAIN.skip([CHANGED], compensated=True),
    "heads": _PLAIN.merge_heads([CHANGED], 1, compensated=False),
    "heads with W_c": _PLAIN.merge_heads([CHANGED], 1, compensated=True),
    "window": _PLAIN.limit_window([CHANGED], 64, compensated=False),
    "window with sinks": _PLAIN.limit_window([CHANGED], 64, 4, compensated=False),
    "share_kv": _PLAIN.share_kv([CHANGED], 1, compensated=False),
    "reuse": _PLAIN.reuse([CHANGED], 1, compensated=False),
}


def engine_rows() -> tuple[list[str], list[list[str]]]:
    """The columns, and per kind of layer of a Llama a row of `yes`, `not run` (written, tried by nobody) or `-`."""
    from uniattn_pl.exporting.decilm.decilm_support import DECILM_ENGINES

    answers: dict[str, Callable[[LayerPlan], str]] = {
        OWN: lambda _: YES,
        VLLM_CPU: lambda plan: NO if _vllm_problems(plan, "cpu") else YES,
        VLLM_GPU: lambda plan: NO if _vllm_problems(plan, "cuda") else UNTRIED,
        LLAMA_CPP: lambda plan: NO if _deci_problems(plan) else YES,
    }
    columns = ["layer", *answers, *(f"{DECILM_PREFIX}{engine}" for engine in DECILM_ENGINES)]
    rows = []
    for kind, plan in KINDS.items():
        obstacles = _decilm_obstacles(plan)
        row = [kind, *(answer(plan) for answer in answers.values())]
        rows.append(row + [NO if obstacles is None or obstacles[engine] else YES for engine in DECILM_ENGINES])
    return columns, rows


def engine_markdown() -> str:
    """The table as docs/serving.md has it."""
    columns, rows = engine_rows()
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@cache
def _llama() -> Any:
    from transformers import AutoConfig

    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS}
    return AutoConfig.for_model("llama", num_attention_heads=4, num_key_value_heads=2, head_dim=16, **sizes)


def _vllm_problems(plan: LayerPlan, device: str) -> list[str]:
    from uniattn_pl.serving.vllm.support import CONVERTED_PREFIX, engine_problems, plan_problems

    config = _llama().to_dict() | {"model_type": f"{CONVERTED_PREFIX}llama", "layer_plan": plan.to_dict()}
    engine = {
        "device": device,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "kv_cache_dtype": "auto",
        "quantization": None,
        "lora": False,
        "kv_transfer": False,
        "heads": _llama().num_attention_heads,
        "kv_heads": _llama().num_key_value_heads,
        "head_size": 16,
        "head_sizes": (),
    }
    return [*plan_problems(config), *engine_problems(plan, engine)]


def _deci_problems(plan: LayerPlan) -> list[str]:
    from uniattn_pl.exporting.gguf.deci_support import deci_problems
    from uniattn_pl.families.model_shape import shape_of

    return deci_problems(plan, _llama(), shape_of(_llama()))


def _decilm_obstacles(plan: LayerPlan) -> dict[str, list[str]] | None:
    """Per engine what keeps it from the folder; None: the folder is not written."""
    from uniattn_pl.exporting.decilm.decilm_support import decilm_problems, engine_obstacles
    from uniattn_pl.families.model_shape import shape_of

    if decilm_problems(plan, _llama(), shape_of(_llama())):
        return None
    return engine_obstacles(plan, _llama(), shape_of(_llama()))
