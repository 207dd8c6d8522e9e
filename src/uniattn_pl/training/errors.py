"""Errors that end a training run for a reason the user can act on (exit code 1, no traceback needed)."""

from __future__ import annotations

from uniattn_pl.errors import RunFailure


class TrainingDivergedError(RunFailure):
    """The loss or a gradient is NaN or infinite; the message names the step and the last good checkpoint."""
