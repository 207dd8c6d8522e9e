"""Checks of `data.streaming`: what cannot be asked of rows that nobody has read.

They are run with those of `config/checks.py`, which has the same form.
"""

from __future__ import annotations

from collections.abc import Callable

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.data_section import MADE, SELF, DataConfig

STAGES = ("stage1", "stage2")


def _sources(config: ExperimentConfig) -> str | None:
    data = config.data
    if not data.streaming:
        return None
    for source in data.training_sources:
        if source in (SELF, *MADE):
            return (
                f"streams files and hub data sets, and '{source}' is held in memory: set it to false, or name shards, "
                "as in data.source='shards/*.parquet'."
            )
    if data.further_sources:
        return "streams a source, or with data.sources several by weight; data.further_sources would need their sizes."
    return _entries(data)


def _entries(data: DataConfig) -> str | None:
    for number, entry in enumerate(data.sources or [], 1):
        if entry.num_samples is not None:
            return (
                f"does not count the rows of a source: data.sources entry {number} has num_samples; its weight, and "
                "training.stage1.max_steps, .stage2.max_steps, say how much of it is trained on."
            )
        if entry.weight is None and len(data.sources or []) > 1:
            return f"does not know the sizes of sources: data.sources entry {number} needs a weight."
    return None


def _samples(config: ExperimentConfig) -> str | None:
    if not config.data.streaming or config.data.num_samples is None or config.data.sources is not None:
        return None
    return (
        "takes rows of a shuffle of all of them, which a stream (data.streaming) never has; training.stage1.max_steps "
        "and .stage2.max_steps say how many steps it is trained on."
    )


def _packing(config: ExperimentConfig) -> str | None:
    if not (config.data.streaming and config.data.packing):
        return None
    return (
        "finds the best fit among all rows, which a stream (data.streaming) never has; set it to false. Plain texts "
        "can be packed one after another: data.pack_documents=true."
    )


def _steps(stage: str) -> Callable[[ExperimentConfig], str | None]:
    def check(config: ExperimentConfig) -> str | None:
        options = getattr(config.training, stage)
        if not (config.data.streaming and options.enabled) or options.max_steps is not None:
            return None
        return "is needed with data.streaming: the schedule must know its steps, and a stream does not know its rows."

    return check


def _epochs(stage: str) -> Callable[[ExperimentConfig], str | None]:
    def check(config: ExperimentConfig) -> str | None:
        options = getattr(config.training, stage)
        if not (config.data.streaming and options.enabled) or options.max_epochs == 1:
            return None
        return (
            f"a stream (data.streaming) is trained on for training.{stage}.max_steps, and begins again where it ends "
            "before; leave it at 1."
        )

    return check


STREAMING_CHECKS: list[tuple[tuple[str, ...], Callable[[ExperimentConfig], str | None]]] = [
    (("data.streaming", "data.source", "data.sources", "data.further_sources"), _sources),
    (("data.num_samples", "data.streaming"), _samples),
    (("data.packing", "data.streaming"), _packing),
    *(
        ((f"training.{stage}.max_steps", "data.streaming", f"training.{stage}.enabled"), _steps(stage))
        for stage in STAGES
    ),
    *(((f"training.{stage}.max_epochs", "data.streaming"), _epochs(stage)) for stage in STAGES),
]
