"""Checks between keys, and of names and paths, that a single field's type cannot express.

Each check names the keys it reads; it is skipped when one of them is already reported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from pathlib import Path

from uniattn_pl.config.calibration_checks import CALIBRATION_CHECKS
from uniattn_pl.config.data_checks import DATA_CHECKS
from uniattn_pl.config.distillation_checks import DISTILLATION_CHECKS
from uniattn_pl.config.kernel_checks import KERNEL_CHECKS
from uniattn_pl.config.preference_checks import PREFERENCE_CHECKS
from uniattn_pl.config.published_sets import how_to_build
from uniattn_pl.config.report_checks import REPORT_CHECKS
from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.measuring_sections import EVERY_KERNEL, PROBES
from uniattn_pl.config.sections.tracking_section import OTHER_LOGGERS
from uniattn_pl.config.source_paths import missing_path
from uniattn_pl.config.streaming_checks import STREAMING_CHECKS
from uniattn_pl.config.sweep_checks import SWEEP_CHECKS
from uniattn_pl.config.training_checks import TRAINING_CHECKS
from uniattn_pl.config.yaml_documents import DEFAULT, at
from uniattn_pl.errors import did_you_mean, nearest_path
from uniattn_pl.families.attention_kernels import ATTENTION_BACKENDS
from uniattn_pl.run_folder import name_problem

Check = Callable[[ExperimentConfig], str | None]
CHECKS: list[tuple[tuple[str, ...], Check]] = []
FIRST_CHECKS = (*REPORT_CHECKS, *CALIBRATION_CHECKS, *DATA_CHECKS, *STREAMING_CHECKS)
LAST_CHECKS = (*KERNEL_CHECKS, *TRAINING_CHECKS, *DISTILLATION_CHECKS, *PREFERENCE_CHECKS, *SWEEP_CHECKS)


def _check(*keys: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        CHECKS.append((keys, check))
        return check

    return add


def cross_check(config: ExperimentConfig, reported: set[str], origin: Callable[[str], str]) -> list[str]:
    """Return one sentence per violated rule.

    Args:
        reported: dotted keys whose value is already known to be unusable.
        origin: maps a dotted key to where its value was set.
    """
    problems = []
    for keys, check in (*FIRST_CHECKS, *CHECKS, *LAST_CHECKS):
        problem = None if reported.intersection(keys) else check(config)
        if problem:
            places = dict.fromkeys(place for place in map(origin, keys) if place != DEFAULT)
            problems.append(f"{at(', '.join(places) or DEFAULT)}{keys[0]}: {problem}")
    return problems


@_check("name")
def _name(config: ExperimentConfig) -> str | None:
    return name_problem(config.name)


@_check("model.source")
def _model_source(config: ExperimentConfig) -> str | None:
    if not config.model.source.strip():
        return "expected a hub id, a local folder, a .gguf file or a name from `list models`; got nothing."
    return missing_path(config.model.source, (".gguf",), "model folder or file") or _unknown_model(config.model.source)


def _unknown_model(source: str) -> str | None:
    from uniattn_pl.families.catalogue import MODELS, no_such_model

    if source in MODELS or "/" in source or Path(source).exists():
        return None
    return no_such_model(source)


@_check("training.micro_batch_size", "training.batch_size", "trainer.devices", "trainer.num_nodes")
def _micro_batches(config: ExperimentConfig) -> str | None:
    training, trainer = config.training, config.trainer
    ranks = trainer.num_nodes * (trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else 1)
    if training.batch_size % (training.micro_batch_size * ranks) == 0:
        return None
    sizes = [size for size in range(1, training.batch_size + 1) if training.batch_size % (size * ranks) == 0]
    allowed = f" It may be {', '.join(map(str, sizes))}." if sizes else ""
    on = f" on {ranks} devices" if ranks > 1 else ""
    return f"{training.micro_batch_size}{on} does not divide training.batch_size={training.batch_size}.{allowed}"


@_check("training.strategy", "trainer.devices", "trainer.num_nodes")
def _strategy(config: ExperimentConfig) -> str | None:
    trainer = config.trainer
    several = trainer.num_nodes > 1 or (isinstance(trainer.devices, int) and trainer.devices > 1)
    if config.training.strategy != "single" or not several:
        return None
    return "single uses one device; set trainer.devices=1 and trainer.num_nodes=1, or training.strategy=auto."


@_check("training.cpu_offload", "training.strategy")
def _offload(config: ExperimentConfig) -> str | None:
    return _only_fsdp(config) if config.training.cpu_offload else None


@_check("training.checkpoint_format", "training.strategy")
def _format(config: ExperimentConfig) -> str | None:
    return _only_fsdp(config) if config.training.checkpoint_format == "sharded" else None


def _only_fsdp(config: ExperimentConfig) -> str | None:
    strategy = config.training.strategy
    return None if strategy == "fsdp" else f"needs training.strategy=fsdp, which is '{strategy}'."


@_check("training.precision", "training.strategy")
def _scaled(config: ExperimentConfig) -> str | None:
    if config.training.precision != "16-mixed" or config.training.strategy != "fsdp":
        return None
    return "16-mixed scales gradients, which fsdp does not support; use bf16-mixed."


@_check("training.lora.dropout")
def _dropout(config: ExperimentConfig) -> str | None:
    return _below_one(config.training.lora.dropout)


def _below_one(value: float) -> str | None:
    return None if value < 1 else f"must be below 1, got {value:g}."


@_check("trainer.devices")
def _devices(config: ExperimentConfig) -> str | None:
    if config.trainer.devices != 0 and re.fullmatch(r"auto|-1|\d+(,\d+)*,?", str(config.trainer.devices)):
        return None
    return f"expected auto, a number of devices, -1 for all, or a list as in '0,1'; got {config.trainer.devices!r}."


@_check("trainer.default_root_dir")
def _root(config: ExperimentConfig) -> str | None:
    root = config.trainer.default_root_dir
    if not root.strip():
        return "expected a folder, got nothing."
    return f"'{root}' is a file, not a folder." if Path(root).is_file() else None


@_check("training.early_stop.decay")
def _decay(config: ExperimentConfig) -> str | None:
    return _below_one(config.training.early_stop.decay)


@_check("training.stage1.warmup_ratio")
def _warmup_1(config: ExperimentConfig) -> str | None:
    return _fraction(config.training.stage1.warmup_ratio)


@_check("training.stage2.warmup_ratio")
def _warmup_2(config: ExperimentConfig) -> str | None:
    return _fraction(config.training.stage2.warmup_ratio)


def _fraction(value: float) -> str | None:
    return None if value <= 1 and math.isfinite(value) else f"is a share of the steps, at most 1; got {value:g}."


@_check("bench.lengths")
def _lengths(config: ExperimentConfig) -> str | None:
    return _counts(config.bench.lengths)


@_check("bench.batch_sizes")
def _batch_sizes(config: ExperimentConfig) -> str | None:
    return _counts(config.bench.batch_sizes)


def _counts(values: list[int]) -> str | None:
    return None if values and min(values) >= 1 else f"expected numbers of at least 1, got {values}."


@_check("bench.backends")
def _backends(config: ExperimentConfig) -> str | None:
    return _some_of(config.bench.backends, (*ATTENTION_BACKENDS, EVERY_KERNEL))


def _some_of(values: list[str], allowed: Collection[str], *, maybe_none: bool = False) -> str | None:
    unknown = [value for value in values if value not in allowed]
    if not unknown and (values or maybe_none):
        return None
    near = did_you_mean(unknown[0], allowed) if unknown else ""
    return f"expected some of {', '.join(allowed)}; got {values}.{near}"


@_check("bench.beside")
def _beside(config: ExperimentConfig) -> str | None:
    files = [Path(file) for file in config.bench.beside]
    problems = [f"'{file}' is a folder." for file in files if file.is_dir()]
    problems += [f"there is no file '{file}'.{nearest_path(file)}" for file in files if not file.exists()]
    return " ".join(problems) or None


@_check("evaluation.probes")
def _probes(config: ExperimentConfig) -> str | None:
    return _some_of(config.evaluation.probes, PROBES, maybe_none=True)


@_check("evaluation.lengths")
def _text_lengths(config: ExperimentConfig) -> str | None:
    return _counts(config.evaluation.lengths)


@_check("evaluation.text", "evaluation.probes")
def _text(config: ExperimentConfig) -> str | None:
    text = config.evaluation.text
    if text is None:
        return "the probe 'positions' needs a text file." if "positions" in config.evaluation.probes else None
    path = Path(text)
    if path.is_dir():
        return f"'{text}' is a folder, not a text file."
    return None if path.exists() else f"there is no text file '{text}'.{nearest_path(path)}{how_to_build(text)}"


@_check("evaluation.h2o")
def _h2o(config: ExperimentConfig) -> str | None:
    rates = config.evaluation.h2o
    return None if all(0 < rate <= 1 for rate in rates) else f"expected shares above 0 and at most 1, got {rates}."


@_check("evaluation.drop")
def _drop(config: ExperimentConfig) -> str | None:
    counts = config.evaluation.drop
    return _counts(counts) if counts else None


@_check("tracking.also")
def _other_loggers(config: ExperimentConfig) -> str | None:
    return _some_of(config.tracking.also, OTHER_LOGGERS, maybe_none=True)


@_check("tracking.register_as")
def _registered_name(config: ExperimentConfig) -> str | None:
    name = config.tracking.register_as
    if name is None or (name.strip() and not {"/", ":"} & set(name)):
        return None
    return f"expected a name of MLflow's model registry, without / and :; got {name!r}."
