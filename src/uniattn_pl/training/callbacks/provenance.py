"""What was run, from which code, on what: next to every fit's checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from uniattn_pl.files import atomic_file
from uniattn_pl.redaction import redact
from uniattn_pl.tracking.environment import environment


class Provenance(pl.Callback):
    """Writes the resolved config, versions, platform and git state when a fit starts.

    A resumed fit adds a record instead of replacing the first, so that a change of code in between shows.
    URLs lose their credentials; environment variables are not recorded at all.

    Args:
        config: the resolved config as nested plain data.
        folder: where `provenance.json` goes; default: the Trainer's default_root_dir.
        identity: digests of the rows, the model and the tokenizer.
    """

    FILE_NAME = "provenance.json"

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        *,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        self.config, self.folder, self.identity = dict(config or {}), folder, dict(identity or {})

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write(self.folder or Path(trainer.default_root_dir), step=trainer.global_step)

    def write(self, folder: Path, *, step: int = 0) -> Path:
        """Append a record for a fit that starts or resumes after `step` optimizer steps; returns the file."""
        path = folder / self.FILE_NAME
        records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        records.append({"step": step, "config": redact(self.config), "identity": self.identity, **environment()})
        with atomic_file(path) as file:
            file.write(json.dumps(records, indent=2).encode())
        return path
