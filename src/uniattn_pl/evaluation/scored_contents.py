"""What an evaluation scores, by content: a text, files of tasks, held-out rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniattn_pl.config.sections.measuring_sections import EvaluationConfig
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, TRAINING_ROWS
from uniattn_pl.resilience.known_digests import known_digest


def scored_contents(options: EvaluationConfig, rows: Mapping[str, str]) -> dict[str, Any]:
    """Digests of the local files and rows that an evaluation with these options scores or measures layers on.

    Args:
        rows: digests of the experiment's rows, by their names in `resilience.identity`, as far as they are known.
    """
    contents: dict[str, Any] = {}
    if "positions" in options.probes and options.text is not None:
        contents["text"] = file_or_name(str(options.text))
    if options.tasks and options.data_dir is not None:
        folders = [Path(options.data_dir) / task for task in options.tasks]
        contents["tasks"] = {f"{file.parent.name}/{file.name}": file_or_name(str(file)) for file in _files(folders)}
    if {"held_out", "divergence"} & set(options.probes) and HELD_OUT_ROWS in rows:
        contents[HELD_OUT_ROWS] = rows[HELD_OUT_ROWS]
    if options.drop and TRAINING_ROWS in rows:
        contents[TRAINING_ROWS] = rows[TRAINING_ROWS]
    return contents


def file_or_name(source: str) -> str:
    """A digest of a local file's content; the name of anything else."""
    path = Path(source)
    return known_digest(path) if path.is_file() else source


def _files(folders: list[Path]) -> list[Path]:
    return [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()) if file.is_file()]
