"""The table behind `list families`: what each tested family can have, found by trying, and kept beside this file.

Trying all takes a minute; `python -m benchmarks.support` does it and writes `family_support.json`.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from importlib.resources import files
from typing import Any

FILE = "family_support.json"
# A default that is another family: Granite 4 with Mamba layers.
OPTIONS: dict[str, dict[str, Any]] = {"granitemoehybrid": {"layer_types": ["attention"] * 32}}


def kept_support() -> dict[str, Any]:
    """What was found last; imports nothing heavy.

    Returns:
        `transformers`: the version it was found with; `families`: see `family_support`; `architectures`: the roles that
        the layers of each have, with its default options.
    """
    found: dict[str, Any] = json.loads(files(__package__).joinpath(FILE).read_text(encoding="utf-8"))
    return found


def found_support() -> dict[str, Any]:
    """The same, found anew."""
    from uniattn_pl.families.inspection import FAMILIES

    return {
        "transformers": version("transformers"),
        "families": {family: family_support(family) for family in FAMILIES},
        "architectures": architecture_roles(),
    }


def family_support(model_type: str) -> dict[str, Any]:
    """What a tested family can have, on its default config: kernels, layers with a window, a verdict per role."""
    from transformers import AutoConfig

    from uniattn_pl.families.anatomy import weightless
    from uniattn_pl.families.inspection import FAMILIES
    from uniattn_pl.families.model_shape import windows_of
    from uniattn_pl.modeling.conversion.possibilities import possibilities

    config = AutoConfig.for_model(model_type, **OPTIONS.get(model_type, {}))
    windows = windows_of(config)
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
