"""What vLLM serves of a plan, and why it serves no other: one table, asked before weights are loaded.

Importable without vLLM, and without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uniattn_pl.errors import did_you_mean
from uniattn_pl.plan import LayerPlan, PlanError

CONVERTED_PREFIX = "uniattn_"


@dataclass(frozen=True)
class ServedFamily:
    """What a family's layers have beside the anatomy that all served families share.

    Attributes:
        models: known by this model type.
        query_bias: a bias of W_q, W_k and W_v; None: as the config's `attention_bias` says.
        output_bias: of W_o; None: the same.
        query_norm: queries and keys are normalised, head by head.
    """

    models: str
    query_bias: bool | None = False
    output_bias: bool | None = False
    query_norm: bool = False


SERVED_FAMILIES = {
    "llama": ServedFamily("Llama 2, Llama 3.x, SmolLM2", query_bias=None, output_bias=None),
    "mistral": ServedFamily("Mistral 7B"),
    "qwen2": ServedFamily("Qwen 2, Qwen 2.5", query_bias=True),
    "qwen3": ServedFamily("Qwen 3", query_bias=None, output_bias=None, query_norm=True),
}


@dataclass(frozen=True)
class ServedRole:
    """How vLLM computes layers of one role.

    Attributes:
        computed: by what.
        cached: what a token of such a layer costs in vLLM's cache.
        cpu_only: why it is refused on other devices; None: it is not.
    """

    computed: str
    cached: str
    cpu_only: str | None = None


SERVED_ROLES = {
    "full": ServedRole("vLLM's attention", "keys and values"),
    "reuse": ServedRole(
        "vLLM's CPU kernel: the source's queries and keys, the layer's own values",
        "values",
        cpu_only="the kernels of GPUs have not been called with keys and values of two layers yet",
    ),
    "share_kv": ServedRole("vLLM's attention, called again with the layer's own queries", "nothing"),
    "drop": ServedRole("W_c, if any", "nothing"),
    "skip": ServedRole("W_c, if any", "nothing"),
    "heads": ServedRole("vLLM's attention", "keys and values of these heads (of all heads, if its map is reused)"),
    "window": ServedRole(
        "vLLM's attention; with sinks PyTorch, over the tokens that are seen",
        "keys and values of the window; of every token with sinks, or beside layers that reuse a map",
    ),
}
SINKS_CPU_ONLY = "their tokens are gathered request by request, which no GPU was tried with"


def plan_problems(config: Mapping[str, Any]) -> list[str]:
    """Why vLLM cannot serve a folder with this config.json, on any device; empty: it can.

    Args:
        config: as plain data.
    """
    model_type = str(config.get("model_type"))
    allowed = [CONVERTED_PREFIX + name for name in SERVED_FAMILIES]
    if model_type not in allowed:
        near = did_you_mean(model_type, allowed)
        return [f"vLLM serves no plans of model_type '{model_type}'.{near} It serves: {', '.join(allowed)}."]
    if config.get("layer_plan") is None:
        return [f"a config.json of model_type '{model_type}' needs a layer_plan; this one has none."]
    try:
        plan = LayerPlan.from_dict(config["layer_plan"])
    except PlanError as error:
        return error.problems
    problems = []
    if len(plan.rows) != config.get("num_hidden_layers"):
        problems.append(f"the plan has {len(plan.rows)} layers, the model {config.get('num_hidden_layers')}.")
    for row in plan.rows:
        if row.role not in SERVED_ROLES:
            served = ", ".join(SERVED_ROLES)
            problems.append(
                f"layer {row.index} has the role '{row.role}', which vLLM does not serve; it serves: {served}."
            )
    if config.get("hidden_act") != "silu":
        problems.append(f"hidden_act is '{config.get('hidden_act')}'; vLLM's layers of these families compute silu.")
    return problems


def engine_problems(plan: LayerPlan, engine: Mapping[str, Any]) -> list[str]:
    """What a plan cannot be served with, of what the engine was asked for; empty: nothing.

    Args:
        plan: one without `plan_problems`.
        engine: `device`, `tensor_parallel_size`, `pipeline_parallel_size`, `kv_cache_dtype`, `quantization`, `lora` and
            `kv_transfer`, as vLLM has them, the model's `heads`, `kv_heads` and `head_size`, and the `head_sizes` that
            the kernel takes (empty: any).
    """
    problems = _division_problems(plan, engine)
    stages = engine["pipeline_parallel_size"]
    if stages != 1:
        problems.append(f"pipeline_parallel_size is {stages}; layers read each other's maps: set it to 1.")
    if engine["head_sizes"] and engine["head_size"] not in engine["head_sizes"]:
        sizes = ", ".join(map(str, engine["head_sizes"]))
        problems.append(f"the model's heads have size {engine['head_size']}; vLLM's kernel takes {sizes}.")
    if engine["lora"]:
        problems.append("LoRA adapters are not served beside a plan; merge one with `uniattn-pl export`.")
    if engine["quantization"]:
        problems.append(
            f"quantization is '{engine['quantization']}'; plans are served as they were saved: leave it out."
        )
    own_pages = {row.index: SERVED_ROLES[row.role].cpu_only for row in plan.rows if SERVED_ROLES[row.role].cpu_only}
    own_pages |= {row.index: SINKS_CPU_ONLY for row in plan.rows if row.sinks}
    for index, reason in own_pages.items():
        what = "has a window with sinks" if plan.rows[index].sinks else f"has the role '{plan.rows[index].role}'"
        if engine["device"] != "cpu":
            problems.append(
                f"layer {index} {what}, which is served on CPUs only, not on '{engine['device']}': {reason}."
            )
        elif engine["kv_cache_dtype"] != "auto":
            problems.append(f"layer {index} {what}, whose cache is not kept in {engine['kv_cache_dtype']}; use auto.")
        elif engine["kv_transfer"]:
            problems.append(f"layer {index} {what}, whose pages are its own: leave kv_transfer_config out.")
    return problems


def _division_problems(plan: LayerPlan, engine: Mapping[str, Any]) -> list[str]:
    """Why heads cannot be divided among the workers of tensor parallelism; empty: they can."""
    workers, heads, kv_heads = engine["tensor_parallel_size"], engine["heads"], engine["kv_heads"]
    if heads % workers or kv_heads % workers:
        return [
            f"tensor_parallel_size is {workers}; the model's {heads} heads, {kv_heads} of keys and values, must divide."
        ]
    problems = []
    for row in plan.rows:
        if row.kv_heads is not None and row.kv_heads % workers:
            problems.append(
                f"tensor_parallel_size is {workers}; layer {row.index} has {row.kv_heads} heads of keys and values: "
                "each worker needs as many."
            )
        each = heads // workers
        if any(head // each != of_map // each for head, of_map in enumerate(row.heads_from or ())):
            problems.append(
                f"tensor_parallel_size is {workers}; layer {row.index} uses maps of heads that another worker has."
            )
    return problems


def support_table() -> str:
    """The roles as Markdown, as docs/serving shows them."""
    lines = ["| role | computed by | a token's cache | GPU |", "|---|---|---|---|"]
    for name, role in SERVED_ROLES.items():
        gpu = "refused" if role.cpu_only else "refused with sinks" if name == "window" else "written, not run"
        lines.append(f"| `{name}` | {role.computed} | {role.cached} | {gpu} |")
    return "\n".join(lines)
