"""What the points of a sweep rest on, by content: points fitted on something else are not its points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from uniattn_pl.errors import UserError
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, TRAINING_ROWS, Identity, changes, digests_of, joint_digest
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.sweeps.point_state import PointState
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.training.present_identity import PresentIdentities

ROWS = (TRAINING_ROWS, HELD_OUT_ROWS)  # what machines that share a sweep must have in common


def check_contents(points: Sequence[Point], folders: Mapping[str, Path]) -> None:
    """Check that what is there of each point was made of the present rows, model and tokenizer.

    Args:
        folders: key -> run folder.

    Raises:
        UserError: naming, for every point begun with something else, what has changed.
    """
    present = PresentIdentities()
    problems: list[str] = []
    for point in points:
        manifest = Manifest.read(folders[point.key])
        if manifest is not None and manifest.identity:
            identity, _ = present.of(point.loaded)  # what cannot be looked at is told by the fit
            changed = changes(identity, manifest.identity, folders[point.key])
            problems += [f"point '{point.name}': {sentence}" for sentence in changed.values()]
    if problems:
        raise UserError(
            *problems,
            "to go on with that sweep put back what these points were begun with; to run it on what there is now, give "
            "another name= or trainer.default_root_dir=, or delete the folders of these points.",
        )


def check_elsewhere(
    points: Sequence[Point], states: Mapping[str, PointState], identities: Mapping[str, Identity]
) -> None:
    """Check that workers on other machines have fitted their points on the rows there are here.

    Raises:
        UserError: naming every point that was fitted on others.
    """
    problems = []
    for point in points:
        state, here = states[point.key], rows_digest(digests_of(identities[point.key]))
        if state.place is not None and None not in (state.rows, here) and state.rows != here:
            problems.append(f"point '{point.name}' was fitted in {state.place} on other rows than those that are here.")
    if problems:
        raise UserError(*problems, "give all machines of a sweep the same files, or this sweep another name=.")


def rows_digest(digests: Mapping[str, str]) -> str | None:
    """One digest of what a point trains on and what it holds out; None where that is not known."""
    return joint_digest(digests, ROWS) if digests.keys() >= {*ROWS} else None


def changed_meanwhile(identity: Identity, folder: Path) -> str | None:
    """What a fit has rested on other than what the sweep began with, in words; None where it is the same."""
    manifest = Manifest.read(folder)
    changed = {} if manifest is None else changes(identity, manifest.identity, folder)
    return f"while the sweep ran, {' '.join(changed.values())}" if changed else None
