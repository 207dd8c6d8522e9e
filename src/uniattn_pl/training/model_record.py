"""What MLflow is told of the model that a fit has made."""

from __future__ import annotations

import json
from pathlib import Path

from uniattn_pl.config import LoadedConfig
from uniattn_pl.evaluation.held_out_preferences import ACCURACY, LOSS
from uniattn_pl.plan import LayerPlan
from uniattn_pl.resilience.identity import HELD_OUT_ROWS
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.run_folder import FINAL
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.data_inputs import held_out_rows
from uniattn_pl.tracking.logged_model import OF_HELD_OUT, ModelRecord

MADE_BY = ("seed", "model.", "architecture.", "data.", "calibration.", "training.")  # keys that make a model what it is
LONGEST_VALUE = 250


def final_figures(manifest: Manifest, folder: Path) -> dict[str, float]:
    """Held-out figures of the final model as metrics of the run.

    The last points of `val/` may be of other weights: a stage can leave its best ones.
    """
    last = manifest.result(folder, "").milestones[-1]
    figures = {
        "response_loss": last.response_loss,
        "perplexity": last.perplexity,
        "answer_accuracy": last.answer_accuracy,
        LOSS: last.preference_loss,
        ACCURACY: last.reward_accuracy,
    }
    return {f"{OF_HELD_OUT}{name}": value for name, value in figures.items() if value is not None}


def model_record(loaded: LoadedConfig, manifest: Manifest, folder: Path) -> ModelRecord:
    """Describe the final model of a fit whose stages are finished, from its config and what its folder records."""
    config, result, place = loaded.config, manifest.result(folder, ""), str((folder / FINAL).resolve())
    described = tags.describing(config, "fit", loaded.architecture.name)
    described = {key: described[key] for key in (tags.ARCHITECTURE, tags.MODEL, tags.DATA)}
    described[tags.RETAINED] = tags.retained(result.cache.retain_rate)
    if manifest.plan is not None:
        described[tags.PLAN] = tags.plan_digest(LayerPlan.from_dict(manifest.plan))
    losses = [milestone.response_loss for milestone in result.milestones]
    what = (
        f"{described[tags.ARCHITECTURE]} of {described[tags.MODEL]}, fitted on {described[tags.DATA]}: held-out loss "
        f"{losses[-1]:.4f} (original {losses[0]:.4f}), {described[tags.RETAINED]} of the cache."
    )
    params = {key: str(value) for key, value in loaded.flatten().items() if key.startswith(MADE_BY)}
    digest = manifest.identity.get(HELD_OUT_ROWS)  # not of a run that a former version began
    return ModelRecord(
        name=config.name,
        kind=loaded.architecture.name,
        folder=place,
        dtype=_saved_dtype(folder / FINAL),
        params={key: value[:LONGEST_VALUE] for key, value in params.items()},
        tags=described,
        what=what,
        step=manifest.step_offset,
        held_out=None if digest is None else held_out_rows(config.data, digest, 0).key,
        register_as=config.tracking.register_as,
    )


def _saved_dtype(folder: Path) -> str:
    """The dtype in a model's config; `auto` where it says none that is asked for by name."""
    said = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("dtype")
    return said if said in ("float32", "bfloat16", "float16") else "auto"
