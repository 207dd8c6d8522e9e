"""Files and folders that appear complete or not at all, whenever the process is killed; what may be replaced."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from uniattn_pl.errors import UserError

SWEEP_ENTRY = "sweep"
# What fit, analyze, bench and evaluate write directly in a run folder.
RUN_ENTRIES = (
    "manifest.json",
    ".lock",
    "provenance.json",
    "final_table.txt",
    "search",
    "calibration",
    "checkpoints",
    "initial",
    "stage1",
    "adapter",
    "final",
    "tracking",
    "analysis",
    "bench",
    "evaluation",
)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that takes its name (replacing it) only when the block succeeds.

    Two renames put the new folder in the place of a former one: a kill in between leaves both, complete, under
    hidden names beside it.
    """
    folder = folder.resolve()  # a link's own place may be on another file system
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                sync_file(file)
        temporary.chmod(0o755)
        _take_name(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_name(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`; a former `folder` is deleted only once the new one has its name."""
    former = temporary.with_name(temporary.name + ".old")
    try:
        if folder.is_dir():
            os.rename(folder, former)
        os.rename(temporary, folder)
    except BaseException:
        if former.exists() and not folder.exists():
            os.rename(former, folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file beside `path` that takes its name (replacing it) only when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # of a killed write; it must be a new file, or a link would be written through
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_run_folder(folder: Path) -> None:
    """Check that no part of a run folder is a link out of it: a run writes and deletes in its own folder only.

    Raises:
        UserError: naming the link and where it leads.
    """
    root = os.path.realpath(folder)
    for path in _parts(folder):
        real = os.path.realpath(path)
        if os.path.islink(path) and os.path.commonpath([root, real]) != root:
            raise UserError(
                f"'{path}' is a link to '{real}', outside of the run folder; remove the link, or let "
                "trainer.default_root_dir be a folder there."
            )


def _parts(folder: Path) -> Iterator[str]:
    """Every path of a run folder that a run may write to; other files of a user are none of its business."""
    for entry in (folder / name for name in RUN_ENTRIES):
        yield str(entry)
        for parent, folders, files in os.walk(entry):
            yield from (os.path.join(parent, name) for name in (*folders, *files))


def check_target(source: Path, target: Path, *, overwrite: bool) -> None:
    """Check that the model in `source` can be written to the folder `target` without loss of anything else.

    Args:
        source: the model folder to read.
        target: absent, empty, or, with `overwrite`, a model folder to replace.

    Raises:
        UserError: the target is a file, overlaps the source, or holds something that is not to be replaced.
    """
    real_source, real_target = source.resolve(), target.resolve()
    if target.is_file():
        raise UserError(f"--to '{target}' is a file, not a folder.")
    if real_target == real_source:
        raise UserError(f"--to '{target}' is the folder to export itself.")
    if real_target.is_relative_to(real_source):
        raise UserError(f"--to '{target}' lies inside the model folder '{source}'; choose a folder outside of it.")
    if real_source.is_relative_to(real_target):
        raise UserError(f"--to '{target}' contains the model folder '{source}'; choose another folder.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / "config.json").is_file():
        raise UserError(
            f"--to '{target}' is not empty and holds no model (no config.json); choose another folder: "
            "--overwrite replaces a model folder only."
        )
    if not overwrite:
        raise UserError(
            f"--to '{target}' is not empty, a model exists there; choose another folder, or pass --overwrite."
        )
