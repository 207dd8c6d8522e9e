"""The table behind `list families`: what each tested family can have, found by trying, and kept beside this file.

`python -m benchmarks.support` does that, which takes minutes, and writes `family_support.json`.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

FILE = "family_support.json"
LAYERS = 12
# What defaults leave out and every published model has (layers with attention, sizes); fewer layers of slow ones.
OPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [3, 7, 11]},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "falcon_h1": {"num_hidden_layers": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "mamba", "attention"] * 3},
    "hunyuan_v1_dense": {"head_dim": 128},
    "jamba": {"num_hidden_layers": 24},
    "kimi_linear": {"num_hidden_layers": 9},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe"] * 4},
    "olmo_hybrid": {"num_hidden_layers": 8},
    "qwen3_5_text": {"num_hidden_layers": 8},
    "qwen3_next": {"num_hidden_layers": 8},
}


def kept_support() -> dict[str, Any]:
    """What was found last; imports nothing heavy.

    Returns:
        `transformers`: the version it was found with; `families`: see `family_support`; `architectures`: the roles that
        the layers of each have, with its default options.
    """
    found: dict[str, Any] = json.loads(files(__package__).joinpath(FILE).read_text(encoding="utf-8"))
    return found


def family_support(model_type: str) -> dict[str, Any]:
    """What a tested family can have: kernels, layers with a window by default, a verdict per role in twelve layers."""
    from transformers import AutoConfig

    from uniattn_pl.families.anatomy import weightless
    from uniattn_pl.families.inspection import FAMILIES
    from uniattn_pl.families.model_shape import windows_of
    from uniattn_pl.modeling.conversion.possibilities import possibilities

    config = AutoConfig.for_model(model_type, **{"num_hidden_layers": LAYERS, **OPTIONS.get(model_type, {})})
    windows = windows_of(AutoConfig.for_model(model_type))
    local = sum(window is not None for window in windows)
    roles = possibilities(config, architectures=False).roles
    return {
        "models": FAMILIES[model_type],
        "kernels": ["eager", "sdpa"] if weightless(config)._supports_sdpa else ["eager"],
        "windows": f"{local} of {len(windows)}" if local else "-",
        "roles": {role: [found.verdict, found.reason] for role, found in roles.items()},
    }


def architecture_roles() -> dict[str, list[str] | None]:
    """Architecture -> the roles that it gives to layers of a Llama; None where it measures which."""
    from transformers import AutoConfig

    from uniattn_pl.architectures import available, get_architecture
    from uniattn_pl.families.model_shape import shape_of
    from uniattn_pl.modeling.conversion.possibilities import EXAMPLES, GIVEN

    shape = shape_of(AutoConfig.for_model("llama", num_key_value_heads=8))
    roles: dict[str, list[str] | None] = {}
    for name in available():
        if name != GIVEN:
            architecture = get_architecture(name)(**EXAMPLES.get(name, {}))
            plan = None if architecture.measured else architecture.compile(shape)
            roles[name] = None if plan is None else sorted({row.role for row in plan.rows if row.operated})
    return roles
