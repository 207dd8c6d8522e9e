"""The plan of an experiment before, or without, its fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.config.sections.calibration_section import CalibrationConfig
from uniattn_pl.config.sections.data_section import SELF
from uniattn_pl.config.yaml_documents import at
from uniattn_pl.errors import UserError
from uniattn_pl.families.positions import beyond_positions
from uniattn_pl.plan import AUTO_RANK, LayerPlan, ModelShape

CHOOSING = ("architecture.", "data.", "model.source", "model.revision", "calibration.", "seed")  # what layers depend on


def compile_plan(loaded: LoadedConfig) -> tuple[LayerPlan, ModelShape]:
    """Return the plan of an experiment on its model, and the model's shape.

    Raises:
        UserError: there is no such model, or the plan does not fit it.
    """
    shape = checked_shape(loaded)
    with _placed(loaded):
        plan = chosen_plan(loaded) or _compiled(loaded, shape)
        plan.check(shape)
    return plan, shape


def compiled_plan(loaded: LoadedConfig, shape: ModelShape) -> LayerPlan | None:
    """The plan of an architecture that needs no measurement, checked against the shape; None: it is chosen later.

    Raises:
        PlanError: the options, or the rank of W_c, do not fit the model.
    """
    loaded.architecture.check(shape)
    if loaded.architecture.measured:
        return None
    plan = _compiled(loaded, shape)
    plan.check(shape)
    return plan


def _compiled(loaded: LoadedConfig, shape: ModelShape) -> LayerPlan:
    """What the architecture compiles to, with W_c as configured; not checked."""
    return with_configured_compensation(loaded.architecture.compile(shape), loaded.config.calibration)


def with_configured_compensation(plan: LayerPlan, calibration: CalibrationConfig) -> LayerPlan:
    """A plan whose every W_c has the rank, and the bias, that a config gives it."""
    plan = plan.limit_rank(calibration.rank)
    return plan.add_bias() if calibration.bias else plan


def checked_shape(loaded: LoadedConfig) -> ModelShape:
    """The shape of an experiment's model, which its architecture fits.

    Raises:
        UserError: there is no such model, or the architecture's options cannot work on it.
    """
    from uniattn_pl.modeling.loading.pretrained import load_shape

    model = loaded.config.model
    shape = load_shape(model.source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    with _placed(loaded):
        loaded.architecture.check(shape)
    return shape


def check_positions(loaded: LoadedConfig, shape: ModelShape, longest: int | None = None) -> None:
    """Check that no sequence is longer than the model's positions; packed ones count theirs anew for every row.

    Args:
        longest: tokens of the longest row, where it is known.

    Raises:
        UserError: `data.max_length` allows longer rows or, with packing, there are some.
    """
    data = loaded.config.data
    tokens = longest if data.packing else data.max_length
    problem = None if tokens is None else beyond_positions("data.max_length", tokens, shape.positions)
    if problem:
        raise UserError(f"{at(loaded.provenance['data.max_length'])}{problem} Set it to {shape.positions} at most.")
    sampled = data.self_text.tokens if SELF in data.training_sources else 0
    problem = beyond_positions("data.self_text.tokens", sampled, shape.positions)
    if problem:
        raise UserError(f"{at(loaded.provenance['data.self_text.tokens'])}{problem}")


@contextmanager
def _placed(loaded: LoadedConfig) -> Iterator[None]:
    """Put where the architecture was named in front of its problems."""
    try:
        yield
    except UserError as error:
        place = at(loaded.provenance["architecture.name"])
        raise UserError(*(f"{place}architecture: {problem}" for problem in error.problems)) from error


def chosen_plan(loaded: LoadedConfig) -> LayerPlan | None:
    """The plan whose layers or ranks this experiment's fit has chosen by measurement, if it has come that far."""
    from uniattn_pl.resilience.manifest import Manifest

    if not loaded.architecture.measured and loaded.config.calibration.rank != AUTO_RANK:
        return None
    manifest = Manifest.read(Path(loaded.config.trainer.default_root_dir))
    if manifest is not None and _chosen_by(manifest.config) != _chosen_by(plain_config(loaded)):
        return None  # it is the choice of another experiment in the same folder
    recorded = manifest and manifest.plan
    return LayerPlan.from_dict(recorded) if recorded else None


def _chosen_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a plain config the choice of layers depends on."""
    from uniattn_pl.resilience.manifest import compared

    return {key: value for key, value in compared(config).items() if key.startswith(CHOOSING)}
