"""Checks of the `sweep` section: its grid, its named points and its seeds.

They are run with those of `config/checks.py`, which has the same form.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.sweep_sections import FOLLOWING
from uniattn_pl.errors import did_you_mean
from uniattn_pl.run_folder import RUN_ENTRIES, SWEEP_ENTRY, name_problem

# options of sbatch -> what gives them
OWN_SLURM_OPTIONS = {
    "partition": "sweep.slurm.partition",
    "time": "sweep.slurm.minutes",
    "gpus-per-node": "sweep.slurm.gpus",
    "cpus-per-task": "sweep.slurm.cpus",
    "mem": "sweep.slurm.memory_gib",
    **dict.fromkeys(
        ("array", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "signal"),
        "the sweep itself: each worker is a job of one task",
    ),
}


def _grid(config: ExperimentConfig) -> str | None:
    wrong = [key for key, values in config.sweep.grid.items() if not isinstance(values, list) or not values]
    return f"'{wrong[0]}' needs a list of values, for example {wrong[0]}: [1, 2]." if wrong else _not_swept(config)


def _not_swept(config: ExperimentConfig) -> str | None:
    """Refuse keys that cannot differ between points: the sweep sets their names, folders and tracking."""
    points = [values for values in config.sweep.points.values() if isinstance(values, dict)]
    keys = [*config.sweep.grid, *(str(key) for values in points for key in values)]
    for key in keys:
        if key in ("name", "trainer.default_root_dir") or key.split(".")[0] in ("sweep", "tracking", "report"):
            return f"'{key}' is the same for all points of a sweep; it cannot be one of its keys."
    return None


def _points(config: ExperimentConfig) -> str | None:
    for name, values in config.sweep.points.items():
        if not isinstance(values, dict):
            return f"'{name}' needs the keys it sets, for example {name}: {{architecture.num_superblocks: 2}}."
        problem = name_problem(str(name))
        if problem is None and name in (*RUN_ENTRIES, SWEEP_ENTRY):
            problem = "a sweep's folder has other things of that name; choose another."
        if problem:
            return f"'{name}': {problem}"
    return None


def _seeds(config: ExperimentConfig) -> str | None:
    if config.sweep.seeds and "seed" in config.sweep.grid:
        return "given here and as sweep.grid's 'seed'; remove one of them."
    return None


def _then(config: ExperimentConfig) -> str | None:
    wrong = [name for name in config.sweep.then if name not in FOLLOWING]
    if wrong:
        near = did_you_mean(wrong[0], FOLLOWING)
        return f"'{wrong[0]}' does not follow a sweep.{near} Allowed: {', '.join(FOLLOWING)}."
    return None


def _slurm_options(config: ExperimentConfig) -> str | None:
    for name, value in config.sweep.slurm.options.items():
        if str(name) in OWN_SLURM_OPTIONS:
            return f"'{name}' is set by {OWN_SLURM_OPTIONS[str(name)]}."
        if not re.fullmatch(r"[a-z]+(-[a-z]+)*", str(name)):
            return f"'{name}' is no long option of sbatch; write account for --account."
        if not isinstance(value, str | int | float) or value is False or not str(value).isprintable():
            return f"'{name}' needs the text or number behind --{name}=, or true where it has none."
    return None


SWEEP_CHECKS: list[tuple[tuple[str, ...], Callable[[ExperimentConfig], str | None]]] = [
    (("sweep.grid",), _grid),
    (("sweep.points",), _points),
    (("sweep.seeds", "sweep.grid"), _seeds),
    (("sweep.then",), _then),
    (("sweep.slurm.options",), _slurm_options),
]
