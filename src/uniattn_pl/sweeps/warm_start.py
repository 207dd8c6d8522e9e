"""Warm starts: a point begins with what another point has measured or calibrated under equal settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from uniattn_pl.files import atomic_folder
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, MODEL, TEMPLATE, TOKENIZER, TRAINING_ROWS
from uniattn_pl.resilience.manifest import PHASES, Manifest, compared
from uniattn_pl.tracking.fit_result import INITIAL, ORIGINAL
from uniattn_pl.tracking.journal import ARTIFACTS, FILE, FOLDER, Journal, entries

# What decides the original's held-out loss, and with `START` what decides the model that stage 1 starts from.
BASELINE = ("model.", "data.", "evaluation.", "training.precision", "trainer.deterministic")
START = (*BASELINE, "architecture.", "calibration.", "seed")
OF_ORIGINAL = (MODEL, TOKENIZER, HELD_OUT_ROWS)  # of the original's loss
OF_START = (*OF_ORIGINAL, TRAINING_ROWS)  # a teacher decides nothing before stage 1
OF_THE_FIT = ("config.yaml", "provenance.json")  # artifacts that every fit writes itself


def start_from_others(
    folder: Path, name: str, config: dict[str, Any], identity: Mapping[str, str], others: Iterable[Path]
) -> str | None:
    """Begin a point's run folder with what the folder of another point already has, where there is one.

    The calibrated model with all its measurements where nothing that decides them differs, in the config or in the
    contents of rows, model and tokenizer, else the original's loss; in the folder's journal too, so that the point's
    MLflow run has the same.

    Args:
        folder: of a point that has not begun; otherwise nothing is done.
        name: of the point.
        config: of the point, plain.
        identity: digests of what the point rests on.
        others: folders of the other points.

    Returns:
        What was taken, in words, or None.
    """
    if Manifest.read(folder) is not None:
        return None
    others_begun = [(other, manifest) for other in others if (manifest := Manifest.read(other)) is not None]
    for other, manifest in others_begun:
        same = _same(START, config, manifest.config) and _rests_on(OF_START, identity, manifest)
        if same and _past("initialise", manifest) and (other / INITIAL).is_dir():
            results = {phase: manifest.results[phase] for phase in ("prepare", "initialise")}
            with atomic_folder(folder / INITIAL) as temporary:
                shutil.copytree(other / INITIAL, temporary, dirs_exist_ok=True)
            begun = Manifest(config, phase="stage1", results=results, identity=dict(identity))
            _begin(folder, other, begun, name, lambda _: True)
            return f"starts from the calibrated model of {other.name}"
    for other, manifest in others_begun:
        same = _same(BASELINE, config, manifest.config) and _rests_on(OF_ORIGINAL, identity, manifest)
        if same and _past("prepare", manifest):
            prepared = manifest.results["prepare"]
            results = {"prepare": {"milestones": {ORIGINAL: prepared["milestones"][ORIGINAL]}}}
            results["prepare"] |= {"texts": prepared["texts"]} if "texts" in prepared else {}
            _begin(folder, other, Manifest(config, results=results, identity=dict(identity)), name, _of_original)
            return f"takes the original's loss from {other.name}"
    return None


def _past(phase: str, manifest: Manifest) -> bool:
    return PHASES.index(manifest.phase) > PHASES.index(phase)


def _same(sections: tuple[str, ...], config: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    one, two = ({k: v for k, v in compared(c).items() if k.startswith(sections)} for c in (config, other))
    return one == two


def _rests_on(names: tuple[str, ...], identity: Mapping[str, str], manifest: Manifest) -> bool:
    """Whether a run rests on the same contents, all of which must be known."""
    known = all(name in identity and manifest.identity.get(name) == identity[name] for name in names)
    return known and manifest.identity.get(TEMPLATE) == identity.get(TEMPLATE)  # which rows in the paper's prompt lack


def _of_original(operation: dict[str, Any]) -> bool:
    return operation["op"] == "metric" and operation["key"].startswith(f"{ORIGINAL}/")


def _begin(folder: Path, other: Path, manifest: Manifest, name: str, takes: Callable[[dict[str, Any]], bool]) -> None:
    """Write the journal, then the manifest: a folder without a manifest, after a kill in between, is begun anew."""
    journal = Journal(folder, fit_id=manifest.fit_id, name=name)
    for operation in filter(takes, _before_training(other / FOLDER / FILE)):
        if operation["op"] == "metric":
            journal.metrics({operation["key"]: operation["value"]}, operation["step"])
        else:
            journal.artifact(operation["path"], (other / FOLDER / ARTIFACTS / operation["path"]).read_bytes())
    journal.close()
    manifest.write(folder)


def _before_training(path: Path) -> Iterator[dict[str, Any]]:
    """The metrics and artifacts of a fit up to its first optimizer step."""
    if not path.exists():
        return
    for operation, _ in entries(path):
        if operation["op"] == "metric" and operation["step"] > 0:
            return
        if operation["op"] == "metric" or (operation["op"] == "artifact" and operation["path"] not in OF_THE_FIT):
            yield operation
