"""What a sweep does behind its last point (sweep.then): further commands with the same config, each once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module

from uniattn_pl.commands.arguments import command_parser, parse
from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.sections.sweep_sections import BENCH
from uniattn_pl.files import atomic_file
from uniattn_pl.sweeps.locks import try_lock
from uniattn_pl.sweeps.sweep_folder import SweepFolder
from uniattn_pl.sweeps.sweep_point import Point

RECORD = "then.json"


def run_following(loaded: LoadedConfig, points: Sequence[Point], folder: SweepFolder, words: Sequence[str]) -> None:
    """Run the commands of sweep.then one after another, unless another worker of the sweep does it.

    A benchmark is not run again until its options or the points are others, or its results are gone.

    Args:
        words: of a command line that loads `loaded`.

    Raises:
        UserError, RunFailure: as the commands.
    """
    lock = try_lock(folder.bookkeeping / ".then.lock")
    if lock is None:
        print(f"another worker of the sweep does what follows: {', '.join(loaded.config.sweep.then)}")
        return
    try:
        for name in loaded.config.sweep.then:
            _run_once(name, loaded, points, folder, words)
    finally:
        os.close(lock)


def _run_once(
    name: str, loaded: LoadedConfig, points: Sequence[Point], folder: SweepFolder, words: Sequence[str]
) -> None:
    print(f"\n{name}", flush=True)
    results, state = folder.root / BENCH, _state(loaded, points)
    if name == BENCH and _measured(folder) == state and results.is_dir():
        print(f"its results are in {results}; without that folder it is run again.")
        return
    command = import_module(f"uniattn_pl.commands.{name}_command")
    command.run(parse(command_parser(name, command), list(words)))
    if name == BENCH:
        with atomic_file(folder.bookkeeping / RECORD) as file:
            file.write(json.dumps({BENCH: state}).encode())


def _state(loaded: LoadedConfig, points: Sequence[Point]) -> str:
    """What a benchmark is of, as a digest."""
    text = json.dumps([asdict(loaded.config.bench), [point.key for point in points]], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _measured(folder: SweepFolder) -> str | None:
    """What the last benchmark was of."""
    try:
        return str(json.loads((folder.bookkeeping / RECORD).read_text(encoding="utf-8"))[BENCH])
    except (OSError, ValueError, KeyError, TypeError):
        return None
