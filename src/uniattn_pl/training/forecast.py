"""What a fit will take, before it starts: steps, time, memory and disk, from its plan, its tokens and this machine.

Sizes are estimates of the same functions as `plan`; the time is a rough one: what the phases compute, at a share
of what this machine reaches in one matrix product now.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.calibration_section import JOINT
from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.data.data_report import DataReport
from uniattn_pl.display.text_table import bytes_text
from uniattn_pl.inference.bench_memory import free_bytes
from uniattn_pl.modeling.loading.dtypes import resolve_dtype
from uniattn_pl.plan import LayerPlan, ModelShape, costs
from uniattn_pl.resilience.checkpoints import KEPT
from uniattn_pl.training.memory_estimate import stage_memory

REACHED = 0.4  # of a matrix product's rate by a fit as a whole; seen on CPUs
FORWARD, STAGE1, STAGE2, RECOMPUTED = 1, 2, 3, 1  # forwards that a pass is worth
MILESTONES = 5  # how often held-out rows are measured at most
MINUTE, HOUR = 60, 3600


@dataclass(frozen=True)
class Forecast:
    """What is expected of a fit.

    Attributes:
        steps: stage -> optimizer steps at most.
        flops: of all phases.
        memory: stage -> bytes on each device at its peak.
        disk: bytes of the run folder at its fullest.
    """

    steps: dict[int, int]
    flops: float
    memory: dict[int, int]
    disk: int

    def lines(self, folder: Path, device: torch.device, flops_per_s: float) -> Iterator[str]:
        """For people, with what is free here; what does not fit is told."""
        steps = ", ".join(f"stage {stage} {count:,} steps" for stage, count in self.steps.items())
        seconds = self.flops / (REACHED * flops_per_s)
        yield f"expected: {steps or 'no training'}, {duration(seconds)} on this machine (rough)"
        memory, free = max(self.memory.values(), default=0), free_bytes(device)
        if memory:
            yield f"memory: {bytes_text(memory)} in the largest stage (estimate){_of_free(memory, free, device.type)}"
        room = shutil.disk_usage(_there(folder)).free
        yield f"disk: {bytes_text(self.disk)} in the run folder at most (estimate){_of_free(self.disk, room, 'disk')}"


def forecast(
    config: ExperimentConfig, plan: LayerPlan | None, shape: ModelShape, report: DataReport, world_size: int
) -> Forecast:
    """What a fit will take.

    Args:
        plan: None, where it is chosen by measurement: as the unmodified model, without the search.
        report: of the tokenised rows.
        world_size: devices that share the work.
    """
    used = plan or LayerPlan.stock(shape)
    training = config.training
    stages: dict[int, StageConfig] = {}
    if training.stage1.enabled and (plan is None or plan.compensated):
        stages[1] = training.stage1
    if training.stage2.enabled:
        stages[2] = training.stage2
    steps = {number: _steps(stage, report, training.batch_size) for number, stage in stages.items()}
    memories = {number: stage_memory(config, used, shape, stage=number, num_devices=world_size) for number in stages}
    element = resolve_dtype(config.model.dtype).itemsize
    model = element * costs.parameters(used, shape)
    states = max((memory.weights + memory.optimizer for memory in memories.values()), default=0) * world_size
    return Forecast(
        steps=steps,
        flops=_flops(config, used, shape, report, steps) / world_size,
        memory={number: memory.total for number, memory in memories.items()},
        # initial/, stage1/ and final/; checkpoints, while another is written
        disk=(1 + len(stages)) * model + (KEPT + 1) * states,
    )


def sample_notes(config: ExperimentConfig, report: DataReport) -> list[str]:
    """Sizes of samples that the config asks for, and that there are not."""
    left = max(report.train - config.calibration.skip_samples, 0)
    asked = (
        ("calibration.num_samples", config.calibration.num_samples, left, "training"),
        ("calibration.held_out_samples", config.calibration.held_out_samples, report.validation, "validation"),
        ("evaluation.num_samples", config.evaluation.num_samples, report.validation, "validation"),
    )
    return [
        f"{key}={wanted:,} takes the {there:,} {kind} rows that there are"
        for key, wanted, there, kind in asked
        if wanted > there
    ]


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 1024, repeats: int = 4) -> float:
    """FLOPs per second of a matrix product, the best of a few, in milliseconds."""
    from uniattn_pl.inference.roofline import product_seconds

    return 2 * size**3 / product_seconds(device, dtype, size=size, repeats=repeats)


def duration(seconds: float) -> str:
    """Seconds in words, with as many digits as an estimate has."""
    if seconds < MINUTE:
        return "less than a minute"
    if seconds < 90 * MINUTE:
        return f"about {round(seconds / MINUTE)} minutes"
    return f"about {seconds / HOUR:.2g} hours"


def _steps(stage: StageConfig, report: DataReport, batch_size: int) -> int:
    sequences = sum(source.drawn for source in report.sources) or report.packs or report.train
    steps = stage.max_epochs * math.ceil(sequences / batch_size)
    return steps if stage.max_steps is None else min(steps, stage.max_steps)


def _flops(
    config: ExperimentConfig, plan: LayerPlan, shape: ModelShape, report: DataReport, steps: dict[int, int]
) -> float:
    """Of calibration, the stages and the measurements between them."""
    sequences = report.packs or report.train
    length = max(report.tokens // max(sequences, 1), 1)
    scored = report.response_tokens / max(sequences, 1)
    logits = 2 * shape.hidden_size * shape.vocab_size * scored
    sequence = costs.prefill_flops(plan, shape, batch_size=1, length=length) + logits
    extra = RECOMPUTED if config.training.gradient_checkpointing else 0
    worth = {1: STAGE1 + extra, 2: STAGE2 + extra}
    total = sum(worth[stage] * count * config.training.batch_size * sequence for stage, count in steps.items())
    total += MILESTONES * FORWARD * min(config.evaluation.num_samples, report.validation) * sequence
    if plan.compensated:
        samples = min(config.calibration.num_samples, report.train)
        features = shape.hidden_size * (2 if config.calibration.initialiser == JOINT else 1)
        total += 2 * FORWARD * samples * sequence
        total += 2 * samples * length * len(plan.compensated) * features**2
    return total


def _of_free(needed: int, free: int | None, where: str) -> str:
    if free is None:
        return ""
    if needed > free:
        return f", but only {bytes_text(free)} are free on {where}"
    return f", {bytes_text(free)} are free on {where}"


def _there(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())
