"""A sweep's folder: one run folder per point, and `sweep/` with all that belongs to the sweep as a whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniattn_pl.errors import UserError
from uniattn_pl.files import atomic_file
from uniattn_pl.redaction import redact
from uniattn_pl.resilience.manifest import Manifest, key_of
from uniattn_pl.run_folder import SWEEP_ENTRY, check_run_folder
from uniattn_pl.sweeps.sweep_point import Point


@dataclass(frozen=True)
class SweepFolder:
    """The paths of a sweep's files; `root` is the trainer.default_root_dir of its config."""

    root: Path

    @property
    def bookkeeping(self) -> Path:
        """Folder of the manifest, the ledger, the logs and the journal of the sweep's MLflow run."""
        return self.root / SWEEP_ENTRY

    @property
    def lock(self) -> Path:
        """Held while the folder, the ledger or the sweep's MLflow run is made or closed."""
        return self.bookkeeping / ".lock"

    @property
    def manifest(self) -> Path:
        return self.bookkeeping / "manifest.json"

    @property
    def table(self) -> Path:
        return self.bookkeeping / "table.txt"

    @property
    def slurm(self) -> Path:
        """Folder of the workers that SLURM starts: their batch scripts, what they are to run and what they print."""
        return self.bookkeeping / "slurm"

    def claim(self, key: str) -> Path:
        """The lock of whoever works on a point on this machine."""
        return self.bookkeeping / "claims" / f"{key}.lock"

    def log(self, folder: Path) -> Path:
        """The file of what the jobs of a point print."""
        return self.bookkeeping / "logs" / f"{folder.name}.log"

    def check(self) -> None:
        """Raise UserError when something the sweep writes to is a link out of its folder."""
        check_run_folder(self.root)

    def planned(self, points: Sequence[Point]) -> dict[str, Path]:
        """Key -> run folder of each point: its name, with its key behind where another experiment has that folder."""
        recorded = self._recorded()
        owners = {entry["folder"]: key for key, entry in recorded.items()}
        folders = {}
        for point in points:
            name = recorded[point.key]["folder"] if point.key in recorded else point.name
            # what a folder was started with says more than a record, whose keys another version may have made
            owner = _started_as(self.root / name) or owners.get(name)
            if owner not in (None, point.key):
                name = f"{point.name}.{point.key[:8]}"
            folders[point.key] = self.root / name
        return folders

    def record(self, points: Sequence[Point]) -> dict[str, Path]:
        """Return the same as `planned`, and write it into the manifest; the caller holds `lock`."""
        folders = self.planned(points)
        entries = self._recorded()
        for point in points:
            words = redact(list(point.words))
            entries[point.key] = {"name": point.name, "folder": folders[point.key].name, "overrides": words}
        with atomic_file(self.manifest) as file:
            file.write((json.dumps({"points": entries}, indent=2) + "\n").encode())
        return folders

    def _recorded(self) -> dict[str, dict[str, Any]]:
        if not self.manifest.exists():
            return {}
        try:
            points: dict[str, dict[str, Any]] = json.loads(self.manifest.read_text(encoding="utf-8"))["points"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.manifest} is not a sweep's manifest ({error}); delete it: each point's folder "
                "still says what it is."
            ) from error
        return points


def _started_as(folder: Path) -> str | None:
    """The key of the experiment that a run folder was started with; None where it has no manifest."""
    manifest = Manifest.read(folder)
    return None if manifest is None else key_of(manifest.config)
