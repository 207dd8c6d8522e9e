"""The typed schema of an experiment file; every key a user may write is a field of a section (`config/sections/`).

Field metadata: `help` is shown by the documentation and the command line, `allowed` lists the admissible values,
`minimum` and `maximum` (inclusive) bound numbers, `path` has `~` and `$VARIABLE` expanded; `config/typing_rules.py`
enforces them. Rules between keys are in `config/checks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from uniattn_pl.config.sections.calibration_section import CalibrationConfig
from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.config.sections.limits import LARGEST_SEED
from uniattn_pl.config.sections.measuring_sections import BenchConfig, EvaluationConfig
from uniattn_pl.config.sections.model_section import ModelConfig
from uniattn_pl.config.sections.sweep_sections import ReportConfig, SweepConfig
from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.config.sections.trainer_section import TrainerConfig
from uniattn_pl.config.sections.training_section import TrainingConfig
from uniattn_pl.options import option


@dataclass
class ExperimentConfig:
    """One experiment, as written in a file and on the command line."""

    name: str = option("experiment", "name of the run and of its folder")
    seed: int = option(0, "seed of weights, data order and everything random", minimum=0, maximum=LARGEST_SEED)
    model: ModelConfig = field(default_factory=ModelConfig)
    architecture: dict[str, Any] = option({"name": "uniattn"}, "name from `list architectures`, and its options")
    data: DataConfig = field(default_factory=DataConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
