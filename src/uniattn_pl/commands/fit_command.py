"""`fit`: the whole experiment, from the original model to the final table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.commands.arguments import Parser, add_config_arguments, load
from uniattn_pl.config import LoadedConfig
from uniattn_pl.errors import UserError
from uniattn_pl.redaction import redact
from uniattn_pl.run_folder import check_run_folder

if TYPE_CHECKING:
    from uniattn_pl.training.preflight import Preflight

DESCRIPTION = """\
Converts the model, calibrates the compensation W_c, post-trains (stage 1: W_c, stage 2: everything) and
ends with a table of quality and cost. Killed at any point, the same command resumes where it was."""
EXAMPLE = """\
  uniattn-pl fit --config quickstart
  uniattn-pl fit --config quickstart architecture.superblock_size=2 name=pairs --dry-run"""
EXTRA = "training"


def add_arguments(parser: Parser) -> None:
    """Add the options of `fit`."""
    add_config_arguments(parser, dry_run=True)
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="resume a run that had another config, other rows, another model or tokenizer: each change is named and "
        "recorded; what is finished stays, what is still to be done uses the present ones",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the experiment, then run it."""
    if not (arguments.config or arguments.overrides):
        raise UserError(
            "fit needs to know what: --config FILE, for example --config quickstart, or values, for example "
            "model.source=tiny-llama."
        )
    loaded = load(arguments)
    if arguments.print_config:
        print(loaded.to_yaml(), end="")
        return 0
    if arguments.dry_run:
        _dry_run(loaded, allow_changes=arguments.allow_changes)
        return 0
    check_run_folder(Path(loaded.config.trainer.default_root_dir))
    from uniattn_pl.training.fit import fit

    fit(loaded, allow_changes=arguments.allow_changes)
    return 0


def _dry_run(loaded: LoadedConfig, *, allow_changes: bool) -> None:
    """Open all that the fit would open, without loading weights."""
    from uniattn_pl.families.catalogue import in_words
    from uniattn_pl.plan.drawing import draw
    from uniattn_pl.training.preflight import check_fit

    found, config = check_fit(loaded, tokens=True, allow_changes=allow_changes), loaded.config
    if found.plan is None:
        drawing = "the layers are chosen by measurement when the fit starts."
        compensated = "every" if getattr(loaded.architecture, "compensation", False) else "0"
    else:
        drawing, compensated = draw(found.plan), str(len(found.plan.compensated))
    stages = [f"stage {i}" for i, stage in ((1, config.training.stage1), (2, config.training.stage2)) if stage.enabled]
    print(
        f"{config.name}: {loaded.architecture.name} on {in_words(config.model.source)}, {found.shape.num_layers} layers"
    )
    print(drawing)
    if found.tokens is not None:
        print("\n".join(found.tokens.lines()))
    elif found.rows is not None:
        print(f"data: {config.data.name}, {found.rows.counted()}")
    if found.unsampled is not None:
        print(f"data: {found.unsampled}")
    if compensated != "0":
        samples = config.calibration.num_samples
        print(f"calibration: {config.calibration.initialiser} of {compensated} W_c on {samples} samples")
    print(f"training: {', '.join(stages) or 'none'}, batch size {config.training.batch_size}")
    state = "resumes or extends" if Path(config.trainer.default_root_dir).exists() else "would be created"
    print(f"run folder: {config.trainer.default_root_dir} ({state}); tracking: {redact(config.tracking.uri)}")
    if found.tokens is not None and found.cluster is not None:
        _print_forecast(loaded, found)
    if found.unopened is None:
        print("dry run: all checks passed, nothing was started.")
    else:
        print(f"dry run: all else was checked, but not the model's own files: {found.unopened}")


def _print_forecast(loaded: LoadedConfig, found: Preflight) -> None:
    """What the fit will take, and the samples that are smaller than asked for."""
    from uniattn_pl.modeling.loading.dtypes import resolve_dtype
    from uniattn_pl.training.forecast import forecast, product_rate, sample_notes

    config, cluster, report = loaded.config, found.cluster, found.tokens
    assert cluster is not None
    assert report is not None
    for note in sample_notes(config, report):
        print(f"note: {note}")
    expected = forecast(config, found.plan, found.shape, report, cluster.world_size)
    rate = product_rate(cluster.device, resolve_dtype(config.model.dtype))
    for line in expected.lines(Path(config.trainer.default_root_dir), cluster.device, rate):
        print(line)
