"""A stage's resumable checkpoints: complete, checked, and never the only one while the next is written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from rich.console import Console
from torch.distributed.checkpoint.api import CheckpointException

from uniattn_pl.errors import RunFailure
from uniattn_pl.files import file_digest, sync_file, sync_folder
from uniattn_pl.resilience import ranks

CHECKSUMS = "checksums.json"
FULL, SHARDS = "full.ckpt", "shards"
KEPT = 2


class CheckpointError(RunFailure):
    """A checkpoint could not be written; the message names the last good one and what to free."""


class QuietCheckpointIO(TorchCheckpointIO):
    """Writes straight to the file, and keeps an error for the store: raised here, on rank 0 alone, it would leave the
    other ranks waiting. (Lightning's own stages the whole file in memory.)"""

    def __init__(self) -> None:
        self.problem: str | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        try:
            # torch's own file would hide what the operating system says, such as that the disk is full
            with open(path, "wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            self.problem = _cause(error)


class CheckpointStore:
    """A folder of checkpoints, one sub-folder per step, of which the last `KEPT` stay.

    A checkpoint is written under a hidden name, its files are summed (SHA-256) and synced, and only then does it get
    its own name: one with a name is complete, and a flipped bit shows.

    Args:
        folder: of one stage.
        console: where damage is told; default: standard error.
    """

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self.folder, self.console = folder, console or Console(stderr=True)
        self.io = QuietCheckpointIO()
        self._damaged: set[Path] = set()

    def save(self, trainer: pl.Trainer, *, sharded: bool) -> Path:
        """Write the trainer's state after `trainer.global_step` steps; every rank calls this.

        Raises:
            CheckpointError: it cannot be written, for instance because the disk is full; what there was is kept.
        """
        final = self.folder / f"step-{trainer.global_step:08d}"
        temporary = self.folder / f".{final.name}"
        if ranks.rank() == 0:
            for leftover in self.folder.glob(".step-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            temporary.mkdir(parents=True)
        ranks.barrier()
        problem = self._write(trainer, temporary / (SHARDS if sharded else FULL))
        problem = problem or self._seal(temporary)
        if problem is not None:
            self._give_up(trainer, temporary, problem)
        if ranks.rank() == 0:
            _remove(final)
            os.rename(temporary, final)
            sync_folder(self.folder)
            self._damaged.discard(final)
            for former in {*self._damaged, *self._steps()[:-KEPT]}:
                _remove(former)
        self._damaged = set()
        ranks.barrier()
        return final

    def newest_good(self) -> Path | None:
        """What to resume from: the newest checkpoint whose files are as they were written; the same on every rank.

        Damaged ones are told and passed over.
        """
        good = None
        if ranks.rank() == 0:
            for folder in reversed(self._steps()):
                problem = damage(folder)
                if problem is None:
                    good = folder / (SHARDS if (folder / SHARDS).is_dir() else FULL)
                    break
                self._damaged.add(folder)
                self.console.print(f"checkpoint {folder} is damaged ({problem}); trying the one before it.")
            if good is None and self._damaged:
                self.console.print("no checkpoint of this stage is left undamaged; the stage starts over.")
        good, self._damaged = ranks.broadcast((good, self._damaged))
        return good

    def newest(self) -> Path | None:
        """The newest checkpoint with a name that is not known to be damaged."""
        return next(reversed(self._steps()), None)

    def clear(self) -> None:
        """Remove all of them: the stage is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted({*self.folder.glob("step-*")} - self._damaged)

    def _write(self, trainer: pl.Trainer, path: Path) -> str | None:
        """Write the files; returns what went wrong on any rank."""
        self.io.problem = None
        try:
            trainer.save_checkpoint(path)
        except CheckpointException as error:  # of shards; no Exception, and raised on every rank
            self.io.problem = _cause(next(iter(error.failures.values()))[0])
        except Exception as error:
            self.io.problem = _cause(error)
        return next((problem for problem in ranks.gather(self.io.problem) if problem), None)

    def _seal(self, folder: Path) -> str | None:
        """Sum and sync the files, each rank its part; returns what went wrong."""
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        problem = None
        sums: dict[str, Any] = {}
        try:
            for file in files[ranks.rank() :: ranks.world_size()]:
                sync_file(file)
                sums[str(file.relative_to(folder))] = {"bytes": file.stat().st_size, "sha256": file_digest(file)}
        except OSError as error:
            problem = _cause(error)
        for part, problem_there in ranks.gather((sums, problem)):
            sums, problem = {**sums, **part}, problem or problem_there
        if ranks.rank() == 0 and problem is None:
            try:
                with (folder / CHECKSUMS).open("w", encoding="utf-8") as handle:
                    json.dump(sums, handle, indent=1)
                    handle.flush()
                    os.fsync(handle.fileno())
            except OSError as error:
                problem = _cause(error)
        return ranks.broadcast(problem)

    def _give_up(self, trainer: pl.Trainer, temporary: Path, problem: str) -> None:
        """Remove what was written, and tell."""
        free = shutil.disk_usage(self.folder).free
        if ranks.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        good, step = self.newest(), trainer.global_step
        kept = f"the last good checkpoint is {good}" if good else "there is no earlier checkpoint"
        needed = _state_bytes(trainer.lightning_module)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written: {problem}. {kept}. {self.folder} has "
            f"{free / 2**20:,.0f} MiB free and a checkpoint takes about {needed / 2**20:,.0f}: free that much there, "
            "then run the same command to resume."
        )


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        recorded = {str(name): (int(wanted["bytes"]), str(wanted["sha256"])) for name, wanted in sums.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"{CHECKSUMS} cannot be read"
    if not recorded:
        return f"{CHECKSUMS} is empty"
    for name, (size, digest) in recorded.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        try:
            if file_digest(file) != digest:
                return f"{name} differs from its checksum"
        except OSError as error:
            return f"{name} cannot be read: {_cause(error)}"
    return None


def _remove(path: Path) -> None:
    """A folder, or what damage has made of it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _cause(error: BaseException) -> str:
    """The first line of an error, of the operating system's where that is behind it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _state_bytes(module: torch.nn.Module) -> int:
    """Weights that train, and AdamW's two states of each."""
    return 3 * sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
