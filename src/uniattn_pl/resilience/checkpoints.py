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
BEST = "best"
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

    Beside them, in `best/`, are the weights that were best so far. A checkpoint has the sums of those it knows among
    its own: as long as it may be resumed from they stay, and where they are damaged so is the checkpoint.

    Args:
        folder: of one stage.
        console: where damage is told; default: standard error.

    Attributes:
        best: the folder of the best weights so far, if any are kept.
    """

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self.folder, self.console = folder, console or Console(stderr=True)
        self.io = QuietCheckpointIO()
        self.best: Path | None = None
        self._damaged: set[Path] = set()

    def save(self, trainer: pl.Trainer, *, sharded: bool) -> Path:
        """Write the trainer's state after `trainer.global_step` steps; every rank calls this.

        Raises:
            CheckpointError: it cannot be written, for instance because the disk is full; what there was is kept.
        """
        final = self.folder / _name(trainer.global_step)
        self._write_whole(trainer, final, sharded=sharded, rests_on=self.best)
        if ranks.rank() == 0:
            self._damaged.discard(final)
            for former in {*self._damaged, *self._steps()[:-KEPT]}:
                _remove(former)
            self._forget_unused()
        self._damaged = set()
        ranks.barrier()
        return final

    def save_best(self, trainer: pl.Trainer, *, sharded: bool) -> None:
        """Write the trainer's weights alone, as the best so far; every rank calls this. Raises as `save`."""
        final = self.best_of(trainer.global_step)
        self._write_whole(trainer, final, sharded=sharded, weights_only=True)
        self.take_best(trainer.global_step)

    def take_best(self, step: int | None) -> None:
        """Go on with the best weights of a step, None: with none yet; what no checkpoint knows either is removed."""
        self.best = None if step is None else self.best_of(step)
        if ranks.rank() == 0:
            self._forget_unused()
        ranks.barrier()

    def best_of(self, step: int) -> Path:
        """Where the weights of a step are that were the best at it."""
        return self.folder / BEST / _name(step)

    def newest_good(self) -> Path | None:
        """What to resume from: the newest checkpoint whose files are as they were written; the same on every rank.

        Damaged ones are told and passed over.
        """
        good = None
        if ranks.rank() == 0:
            for folder in reversed(self._steps()):
                problem = damage(folder)
                if problem is None:
                    good = state_in(folder)
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

    def _write_whole(
        self,
        trainer: pl.Trainer,
        final: Path,
        *,
        sharded: bool,
        weights_only: bool = False,
        rests_on: Path | None = None,
    ) -> None:
        """Write under a hidden name, and give it its own when it is complete."""
        temporary = final.with_name(f".{final.name}")
        if ranks.rank() == 0:
            for leftover in final.parent.glob(".step-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            temporary.mkdir(parents=True)
        ranks.barrier()
        problem = self._write(trainer, temporary / (SHARDS if sharded else FULL), weights_only=weights_only)
        problem = problem or self._seal(temporary, rests_on)
        if problem is not None:
            self._give_up(trainer, temporary, problem, copies=1 if weights_only else 3)
        if ranks.rank() == 0:
            _remove(final)
            os.rename(temporary, final)
            sync_folder(final.parent)

    def _forget_unused(self) -> None:
        """Remove best weights that neither this fit nor a checkpoint goes on with."""
        used = {self.best, *(self.folder / name for step in self._steps() for name in _rests_on(step))}
        for folder in {*(self.folder / BEST).glob("step-*")} - used:
            _remove(folder)

    def _write(self, trainer: pl.Trainer, path: Path, *, weights_only: bool) -> str | None:
        """Write the files; returns what went wrong on any rank."""
        self.io.problem = None
        try:
            trainer.save_checkpoint(path, weights_only=weights_only)
        except CheckpointException as error:  # of shards; no Exception, and raised on every rank
            self.io.problem = _cause(next(iter(error.failures.values()))[0])
        except Exception as error:
            self.io.problem = _cause(error)
        return next((problem for problem in ranks.gather(self.io.problem) if problem), None)

    def _seal(self, folder: Path, rests_on: Path | None) -> str | None:
        """Sum and sync the files, each rank its part; returns what went wrong.

        Args:
            rests_on: another sealed folder, in the stage's, whose sums are put beside its own.
        """
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
                sums |= {} if rests_on is None else _sums_beside(rests_on, folder)
                with (folder / CHECKSUMS).open("w", encoding="utf-8") as handle:
                    json.dump(sums, handle, indent=1)
                    handle.flush()
                    os.fsync(handle.fileno())
            except (OSError, ValueError) as error:
                problem = _cause(error)
        return ranks.broadcast(problem)

    def _give_up(self, trainer: pl.Trainer, temporary: Path, problem: str, *, copies: int) -> None:
        """Remove what was written, and tell."""
        free = shutil.disk_usage(self.folder).free
        if ranks.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        good, step = self.newest(), trainer.global_step
        kept = f"the last good checkpoint is {good}" if good else "there is no earlier checkpoint"
        needed = copies * _state_bytes(trainer.lightning_module)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written: {problem}. {kept}. {self.folder} has "
            f"{free / 2**20:,.0f} MiB free and a checkpoint takes about {needed / 2**20:,.0f}: free that much there, "
            "then run the same command to resume."
        )


def state_in(folder: Path) -> Path:
    """What a checkpoint's folder holds: one file, or a folder of shards."""
    return folder / (SHARDS if (folder / SHARDS).is_dir() else FULL)


def step_of(state: Path) -> int:
    """The optimizer steps of its stage that a checkpoint has behind it."""
    return int(next(part for part in reversed(state.parts) if part.startswith("step-")).removeprefix("step-"))


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


def _name(step: int) -> str:
    """Of the folder of what was saved after so many steps."""
    return f"step-{step:08d}"


def _sums_beside(other: Path, folder: Path) -> dict[str, Any]:
    """The sums of a sealed folder, by names as they are seen from another one."""
    sums = json.loads((other / CHECKSUMS).read_text(encoding="utf-8"))
    return {os.path.relpath(other / name, folder): wanted for name, wanted in sums.items()}


def _rests_on(folder: Path) -> set[str]:
    """The best weights whose sums a checkpoint has, relative to the stage's folder; none of one that is damaged."""
    try:
        names = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        parts = (Path(os.path.normpath(Path(folder.name, name))).parts for name in names)
        return {str(Path(*part[:2])) for part in parts if part[0] == BEST}
    except (OSError, ValueError, TypeError, AttributeError):
        return set()


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
    """Weights that train; a checkpoint has AdamW's two states of each besides."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
