"""The model card of an exported model: its plan, what it costs, and where it comes from."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from uniattn_pl.exporting.card_origin import front_matter, licence_line, scores
from uniattn_pl.families.catalogue import in_words
from uniattn_pl.families.encoder_decoder import auto_model, has_encoder, reading
from uniattn_pl.families.inspection import MODEL_TYPE_PREFIX
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.modeling.conversion.convert import plan_of
from uniattn_pl.plan import LayerPlan, ModelShape, costs
from uniattn_pl.plan.drawing import draw
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.run_folder import run_name
from uniattn_pl.tracking.fit_result import FitResult
from uniattn_pl.training.callbacks.provenance import Provenance

FIGURE = "milestones.png"
CARD_LENGTHS = (512, 8192)
MEASURED_LENGTH = 64


def model_card(model: PreTrainedModel, source: Path, *, standalone: bool = False) -> str:
    """A Markdown card: layer plan, costs (counted and measured on this model), training, how to load it.

    Args:
        model: as it will be loaded.
        source: the folder it comes from; a run's `final/` tells how it was trained.
        standalone: its folder carries its own code.
    """
    config = model.config
    converted = config.model_type.startswith(MODEL_TYPE_PREFIX)
    plan = plan_of(model)
    family = config.model_type.removeprefix(MODEL_TYPE_PREFIX)
    task = "text2text-generation" if has_encoder(config) else "text-generation"
    manifest = finished_run(source)
    name = run_name(source) if manifest is not None else f"A {family} model"
    sections = [
        front_matter(task, manifest),
        f"# {name}",
        f"A {family} model with a layer plan, made by uniattn_pl.",
        f"```\n{draw(plan)}\n```",
        "## Costs\n\n" + _costs(model, plan, shape_of(config)),
        *_training(source, manifest),
        "## Loading\n\n" + _loading(auto_model(config).__name__, converted, standalone),
    ]
    return "\n\n".join(sections) + "\n"


def _costs(model: PreTrainedModel, plan: LayerPlan, shape: ModelShape) -> str:
    total, active = costs.parameters(plan, shape), costs.active_parameters(plan, shape)
    rows = [
        f"{total:,} parameters." if active == total else f"{total:,} parameters, {active:,} of them for each token.",
        "",
        "| tokens | KV cache, relative to the unmodified model |",
    ]
    rows.append("|---|---|")
    rows += [f"| {length:,} | {costs.kv_retain_rate(plan, shape, length=length):.2%} |" for length in CARD_LENGTHS]
    measured = _measured_bytes(model, MEASURED_LENGTH)
    rows += ["", f"Measured on a real cache when this folder was written: {measured:,} bytes for one sequence of"]
    rows.append(f"{MEASURED_LENGTH} tokens in {str(model.dtype).removeprefix('torch.')}.")
    return "\n".join(rows)


def _measured_bytes(model: PreTrainedModel, length: int) -> int:
    """Bytes that the cache of one sequence of `length` tokens really holds."""
    import torch

    tokens = torch.arange(length, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
    with torch.no_grad():
        return kv_cache_bytes(model(**reading(model, tokens), use_cache=True).past_key_values)


def finished_run(source: Path) -> Manifest | None:
    """The manifest of the finished run that wrote `source` (its `final/`); None for any other folder."""
    manifest = Manifest.read(source.parent)
    return None if manifest is None or manifest.phase != "done" else manifest


def write_figure(source: Path, folder: Path) -> None:
    """Draw the loss at each milestone of the run that wrote `source` into `folder`, where there can be a figure."""
    manifest = finished_run(source)
    if manifest is None or find_spec("matplotlib") is None:
        return
    from uniattn_pl.display.figure_style import images
    from uniattn_pl.tracking.fit_plots import milestones

    losses = {one.label: one.response_loss for one in manifest.result(source.parent, "").milestones}
    about = (in_words(manifest.config["model"]["source"]),)
    (folder / FIGURE).write_bytes(images(milestones(losses, *about), FIGURE.removesuffix(".png"))[FIGURE])


def _training(source: Path, manifest: Manifest | None) -> list[str]:
    """How a run trained it, and what it scores; nothing for a folder that is of none."""
    if manifest is None:
        return []
    run = source.parent
    summary, licence = _summary(manifest.result(run, ""), manifest.config), licence_line(manifest)
    figure = "" if find_spec("matplotlib") is None else f"\n\n![Held-out loss at each milestone]({FIGURE})"
    sections = ["## Training\n\n" + (f"{licence}\n" if licence else "") + summary + figure, *scores(run)]
    provenance = run / Provenance.FILE_NAME
    if provenance.is_file():
        sections.append("## Made with\n\n" + _environment(json.loads(provenance.read_text(encoding="utf-8"))[-1]))
    return sections


def _summary(result: FitResult, config: dict[str, Any]) -> str:
    data, training = config["data"], config["training"]
    options = ", ".join(f"{key}={value}" for key, value in config["architecture"].items() if key != "name")
    sources = " + ".join(entry["source"] for entry in data.get("sources") or [data])
    lines = [
        f"- model: {in_words(config['model']['source'])}",
        f"- architecture: {config['architecture']['name']} ({options})",
        f"- data: {sources}, at most {data['max_length']} tokens a sequence",
        f"- initialiser: {config['calibration']['initialiser']}, seed {config['seed']}",
        *(f"- {stage.name}: {stage.steps} steps of {training['batch_size']} sequences" for stage in result.stages),
        "",
        "| held-out | response loss | answer accuracy |",
        "|---|---|---|",
    ]
    for milestone in result.milestones:
        accuracy = "" if milestone.answer_accuracy is None else f"{milestone.answer_accuracy:.1%}"
        lines.append(f"| {milestone.label} | {milestone.response_loss:.4f} | {accuracy} |")
    cache = result.cache
    lines += ["", f"KV cache of {cache.length} tokens measured in the run: {cache.measured:,} bytes,"]
    lines.append(f"{cache.retain_rate:.2%} of the unmodified model's {cache.unmodified:,}.")
    return "\n".join(lines)


def _environment(record: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
    git = record.get("git") or {}
    code = f"- code: commit {git['commit']}{' with local changes' if git.get('dirty') else ''}\n" if git else ""
    devices = ", ".join(record["devices"])
    return f"{code}- {packages}, Python {record['python']}\n- {devices}"


def _loading(auto: str, converted: bool, standalone: bool) -> str:
    first = "import uniattn_pl  # registers the model type\n" if converted and not standalone else ""
    trust = ", trust_remote_code=True" if standalone else ""
    note = "\nThe code in this folder needs transformers and torch only.\n" if standalone else ""
    return f"""```python
{first}from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("this folder", dtype="auto"{trust})
tokenizer = AutoTokenizer.from_pretrained("this folder"{trust})
```{note}"""
