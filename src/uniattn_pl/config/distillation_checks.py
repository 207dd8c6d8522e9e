"""Checks of `training.distillation`, run with those of `config/checks.py`, which has the same form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.distillation_section import ORIGINAL, TermWeights
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.run_folder import model_folder

SECTION = "training.distillation"


def _stages(config: ExperimentConfig) -> list[tuple[str, TermWeights]]:
    """The weights of the stages that run, by name."""
    training = config.training
    both = (("stage1", training.stage1), ("stage2", training.stage2))
    return [(name, getattr(training.distillation, name)) for name, stage in both if stage.enabled]


def _teacher(config: ExperimentConfig) -> str | None:
    teacher = config.training.distillation.teacher
    if teacher is None or teacher == ORIGINAL or teacher in config.sweep.points:
        return None  # a point of the sweep is fitted first
    near = did_you_mean(teacher, [ORIGINAL])
    if near and not Path(teacher).exists():
        return f"there is no folder '{teacher}'.{near} Allowed: {ORIGINAL}, a run folder or a model folder."
    try:
        model_folder(Path(teacher))
    except UserError as error:
        return f"{' '.join(error.problems)} Allowed: {ORIGINAL}, a run folder or a model folder."
    return None


def _used(config: ExperimentConfig) -> str | None:
    stages = _stages(config)
    if config.training.distillation.teacher is None or not stages or any(w.needs_teacher for _, w in stages):
        return None
    names = " and ".join(f"{name}.logits, .hidden and .maps" for name, _ in stages)
    return f"nothing is learned from the teacher: {names} are 0; give one a weight, or set teacher to null."


def _terms(config: ExperimentConfig) -> str | None:
    if config.training.distillation.teacher is None:
        return None
    empty = [name for name, weights in _stages(config) if not weights.labels and not weights.needs_teacher]
    return f"{empty[0]} minimises nothing: all its weights are 0." if empty else None


def _hidden(config: ExperimentConfig) -> str | None:
    options = config.training.distillation
    with_hidden = [name for name, weights in _stages(config) if weights.hidden]
    if options.teacher is None or bool(options.hidden_layers) == bool(with_hidden):
        return None
    if with_hidden:
        return f"{with_hidden[0]}.hidden has a weight, but no layer is named whose hidden states are compared."
    return "layers are named, but no stage that runs gives .hidden a weight."


def _cached(config: ExperimentConfig) -> str | None:
    options = config.training.distillation
    if options.teacher is None or not options.cache:
        return None
    if options.top_k is None:
        return "the cache keeps a teacher's largest logits; say with top_k how many (64, for instance)."
    for name, weights in _stages(config):
        if weights.hidden:
            return f"the cache keeps logits, no hidden states, which {name}.hidden compares; do without one."
        if weights.maps:
            return f"the cache keeps logits, no attention maps, which {name}.maps compares; do without one."
    return None


DISTILLATION_CHECKS: tuple[tuple[tuple[str, ...], Callable[[ExperimentConfig], str | None]], ...] = (
    ((f"{SECTION}.teacher",), _teacher),
    ((f"{SECTION}.stage1", f"{SECTION}.stage2", f"{SECTION}.teacher"), _used),
    ((f"{SECTION}.stage1", f"{SECTION}.stage2", f"{SECTION}.teacher"), _terms),
    ((f"{SECTION}.hidden_layers", f"{SECTION}.stage1", f"{SECTION}.stage2"), _hidden),
    ((f"{SECTION}.cache", f"{SECTION}.top_k", f"{SECTION}.stage1", f"{SECTION}.stage2"), _cached),
)
