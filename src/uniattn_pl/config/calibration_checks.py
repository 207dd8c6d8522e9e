"""Checks of the `calibration` section, beyond what a single field's type can express.

They are run with those of `config/checks.py`, which has the same form.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.calibration_section import LEAST_SQUARES
from uniattn_pl.plan import AUTO_RANK


def _ridge(config: ExperimentConfig) -> str | None:
    ridge = config.calibration.ridge
    if ridge == "auto" or (isinstance(ridge, int | float) and 0 <= ridge < math.inf):
        return None
    return f"expected auto or a number of at least 0; got {ridge!r}."


def _rank(config: ExperimentConfig) -> str | None:
    rank, initialiser = config.calibration.rank, config.calibration.initialiser
    if rank is None or isinstance(rank, int):
        return None
    if rank != AUTO_RANK:
        return f"expected {AUTO_RANK} or a whole number of at least 1; got {rank!r}."
    if initialiser in LEAST_SQUARES:
        return None
    return (
        f"{AUTO_RANK} goes by the error that W_c repairs, which {initialiser} does not know; "
        f"calibration.initialiser may be {' or '.join(LEAST_SQUARES)}."
    )


def _rank_keeps(config: ExperimentConfig) -> str | None:
    share, rank = config.calibration.rank_keeps, config.calibration.rank
    if share is None:
        return None
    if rank != AUTO_RANK:
        return f"is for a rank that is chosen: calibration.rank={AUTO_RANK}, which is {rank or 'not set'}."
    return None if share > 0 else f"is a share, above 0 and at most 1; got {share:g}."


def _bias(config: ExperimentConfig) -> str | None:
    if not config.calibration.bias or config.architecture.get("compensation", True):
        return None
    return "a bias is part of W_c, and architecture.compensation=false leaves none."


def _refine(config: ExperimentConfig) -> str | None:
    refine = config.calibration.refine
    if refine.steps:
        if config.architecture.get("compensation", True):
            return None
        return "W_c is refined behind its fit, and architecture.compensation=false leaves none."
    given = [name for name in ("learning_rate", "error", "feed_forward") if getattr(refine, name) is not None]
    return f"{given[0]} is of a refinement, which takes calibration.refine.steps." if given else None


def _alignment(config: ExperimentConfig) -> str | None:
    if config.calibration.head_alignment == "none" or config.architecture.get("compensation", True):
        return None
    return "heads are aligned while W_c is fitted, and architecture.compensation=false leaves nothing to fit."


CALIBRATION_CHECKS: list[tuple[tuple[str, ...], Callable[[ExperimentConfig], str | None]]] = [
    (("calibration.ridge",), _ridge),
    (("calibration.rank", "calibration.initialiser"), _rank),
    (("calibration.rank_keeps", "calibration.rank"), _rank_keeps),
    (("calibration.bias", "architecture.compensation"), _bias),
    (("calibration.refine.steps", "architecture.compensation"), _refine),
    (("calibration.head_alignment", "architecture.compensation"), _alignment),
]
