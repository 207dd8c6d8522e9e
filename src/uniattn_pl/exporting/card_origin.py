"""What a model card says of where a model comes from, also for the hub's pages: base, licence, data, scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from uniattn_pl.config.published_sets import SETS
from uniattn_pl.config.sections.data_section import DATA_SUFFIXES
from uniattn_pl.config.source_paths import looks_like_path
from uniattn_pl.families.catalogue import MODELS
from uniattn_pl.modeling.loading.hub_connection import is_hub_id
from uniattn_pl.resilience.manifest import Manifest

RESULTS = Path("evaluation", "results.json")  # as `evaluate` writes it into a run
DETAIL = "_depth_"  # figures of single depths, too many for a card


def front_matter(task: str, manifest: Manifest | None) -> str:
    """The YAML that the hub reads of a card.

    Args:
        task: the hub's name of what the model does.
        manifest: of the run that made the model; None: nothing is known of it.
    """
    lines = ["library_name: transformers", f"pipeline_tag: {task}"]
    config = {} if manifest is None else manifest.config
    source = config["model"]["source"] if config else ""
    named = MODELS.get(source)
    base = named.base_model if named is not None else source if _on_hub(source, ()) else None
    if base is not None:
        lines += [f"base_model: {base}", "base_model_relation: finetune"]
    if named is not None and named.licence is not None:
        lines.append(f"license: {named.licence}")
    datasets = data_sets(config["data"]) if config else []
    if datasets:
        lines += ["datasets:", *(f"- {name}" for name in datasets)]
    architecture = [config["architecture"]["name"]] if config else []
    lines.append(f"tags: [{', '.join(['uniattn_pl', *architecture])}]")
    return "---\n" + "\n".join(lines) + "\n---"


def licence_line(manifest: Manifest) -> str | None:
    """What to say of the licence where no one here knows it."""
    source = manifest.config["model"]["source"]
    if source in MODELS and MODELS[source].licence is not None:
        return None
    return f"- licence: that of {source}, which this card does not name; add it before you pass the model on"


def data_sets(data: dict[str, Any]) -> list[str]:
    """The hub's names of what was trained on, as far as they are known: of files those that `data` builds."""
    entries = [entry["source"] for entry in data.get("sources") or [data]]
    named = [_public(str(source)) for source in [*entries, *(data.get("further_sources") or [])]]
    return list(dict.fromkeys(name for name in named if name is not None))


def scores(run: Path) -> list[str]:
    """A section of what `evaluate` has measured of a run; nothing where it has not."""
    try:
        results: Sequence[dict[str, Any]] = json.loads((run / RESULTS).read_text(encoding="utf-8"))["results"]
    except (OSError, ValueError, KeyError):  # not evaluated, or not by this version
        return []
    lines = ["| task | metric | value | 95 % interval | rows |", "|---|---|---|---|---|"]
    for result in results:
        for metric, figure in result["figures"].items():
            if DETAIL not in metric:
                low, high = figure.get("low"), figure.get("high")
                interval = "" if low is None else f"{low:.4f} to {high:.4f}"
                lines.append(f"| {result['name']} | {metric} | {figure['value']:.4f} | {interval} | {result['rows']} |")
    return ["## Evaluation\n\n" + "\n".join(lines)]


def _public(source: str) -> str | None:
    for published in SETS.values():
        for file in published.files:
            if PurePath(source).name == PurePath(file.place).name and published.variable == "UNIATTN_PL_DATA":
                return file.hub
    return source if _on_hub(source, DATA_SUFFIXES) else None


def _on_hub(source: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a source can only be an owner's model or data set on the hub."""
    here = looks_like_path(source, suffixes) or Path(source).exists()
    return source.count("/") == 1 and not here and is_hub_id(source)
