"""The parameters of a run: what somebody has set, and what tells runs apart whoever set it."""

from __future__ import annotations

from typing import Any

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.yaml_documents import DEFAULT

ALWAYS = ("name", "seed", "model.source", "architecture.name", "data.source")


def set_params(loaded: LoadedConfig) -> dict[str, Any]:
    """The keys of a config that a file, the command line or the environment has set; `config.yaml` has all of them.

    Every entry of a list of sections, as `data.sources`, has its own parameters.
    """
    params: dict[str, Any] = {}
    for key, value in loaded.flatten().items():
        if loaded.provenance.get(key, DEFAULT) == DEFAULT and not key.startswith(ALWAYS):
            continue
        entries = value if isinstance(value, list) and any(isinstance(item, dict) for item in value) else []
        params |= {f"{key}.{number}.{name}": one for number, item in enumerate(entries) for name, one in item.items()}
        params |= {} if entries else {key: value}
    return params
