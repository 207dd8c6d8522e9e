"""Checks of `training.objective` and `training.dpo`, run with those of `config/checks.py`, which has the same form."""

from __future__ import annotations

from collections.abc import Callable

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.data_section import (
    EMBEDDED,
    EMBEDDED_CHATS,
    EMBEDDED_PAIRS,
    PREFERENCE,
    ROW_FORMATS,
    SELF,
    TEXT_SUFFIXES,
)
from uniattn_pl.config.sections.dpo_section import DPO, ROBUST

SECTION, OBJECTIVE = "training.dpo", "training.objective"
ROWS = f"rows with prompt, chosen and rejected, or with chosen and rejected conversations ('{EMBEDDED_PAIRS}' are some)"
AUTO = "auto"


def _learns(config: ExperimentConfig) -> bool:
    return config.training.objective == DPO


def _stage(config: ExperimentConfig) -> str | None:
    if not _learns(config) or config.training.stage2.enabled:
        return None
    return f"{DPO} is what stage 2 learns, which training.stage2.enabled=false leaves out; stage 1 learns responses."


def _teacher(config: ExperimentConfig) -> str | None:
    distillation = config.training.distillation
    if not _learns(config) or distillation.teacher is None or not distillation.stage2.needs_teacher:
        return None
    return (
        f"{DPO} minimises the loss of preferences alone in stage 2; set the weights logits, hidden and maps of "
        "training.distillation.stage2 to 0 (stage 1 may have the teacher), or the objective to sft."
    )


def _packing(config: ExperimentConfig) -> str | None:
    if not _learns(config) or not config.data.packing:
        return None
    return (
        f"training.objective={DPO} compares the log-probabilities of two whole responses, which are not told apart in "
        "a pack; set data.packing=false."
    )


def _sources(config: ExperimentConfig) -> str | None:
    if not _learns(config):
        return None
    without = [source for source in config.data.training_sources if _has_no_pairs(source)]
    return f"'{without[0]}' has no pairs; training.objective={DPO} learns from {ROWS}." if without else None


def _weights(config: ExperimentConfig) -> str | None:
    entries = config.data.sources or []
    if not _learns(config) or all(entry.weight is None for entry in entries):
        return None
    return f"training.objective={DPO} takes every pair once an epoch; leave the weights of the entries out."


def _streams(config: ExperimentConfig) -> str | None:
    if not _learns(config) or not config.data.streaming:
        return None
    return f"training.objective={DPO} has the reference read all pairs once before; set data.streaming=false."


def _has_no_pairs(source: str) -> bool:
    return source in (EMBEDDED, EMBEDDED_CHATS, SELF) or source.lower().endswith(TEXT_SUFFIXES)


def _format(config: ExperimentConfig) -> str | None:
    if not _learns(config) or config.data.format in (AUTO, PREFERENCE):
        return None
    others = ", ".join(name for name in ROW_FORMATS if name not in (AUTO, PREFERENCE))
    return f"training.objective={DPO} needs rows of the format {PREFERENCE} (or {AUTO}); {others} have one response."


def _beta(config: ExperimentConfig) -> str | None:
    beta = config.training.dpo.beta
    return None if beta > 0 else f"must be above 0, got {beta:g}: rewards are multiples of it (0.1 is usual)."


def _smoothing(config: ExperimentConfig) -> str | None:
    options = config.training.dpo
    if not options.label_smoothing:
        return None
    if options.loss_type != ROBUST:
        return f"is the share of wrong pairs of loss_type={ROBUST}; {options.loss_type} has none. Set it to 0."
    if options.label_smoothing < 0.5:
        return None
    return f"must be below 0.5, got {options.label_smoothing:g}: half of the pairs the wrong way round say nothing."


PREFERENCE_CHECKS: tuple[tuple[tuple[str, ...], Callable[[ExperimentConfig], str | None]], ...] = (
    ((OBJECTIVE, "training.stage2.enabled"), _stage),
    ((OBJECTIVE, "training.distillation.stage2"), _teacher),
    (("data.packing", OBJECTIVE), _packing),
    (("data.source", "data.further_sources", "data.sources", OBJECTIVE), _sources),
    (("data.sources", OBJECTIVE), _weights),
    (("data.streaming", OBJECTIVE), _streams),
    (("data.format", OBJECTIVE), _format),
    ((f"{SECTION}.beta",), _beta),
    ((f"{SECTION}.label_smoothing", f"{SECTION}.loss_type"), _smoothing),
)
