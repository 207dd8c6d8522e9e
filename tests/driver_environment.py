"""The environment of the processes that fork fits: they find `tests`, and each computes with one thread."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def driver_environment(further: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, what every driver needs, and `further` variables."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **threads, "PYTHONPATH": f"{ROOT}/src:{ROOT}", **(further or {})}
