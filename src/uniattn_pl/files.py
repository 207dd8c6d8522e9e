"""Writing files and folders that appear complete or not at all, whenever the process is killed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that takes its name (replacing it) only when the block succeeds.

    Two renames put the new folder in the place of a former one: a kill in between leaves both, complete, under
    hidden names beside it.
    """
    folder = folder.resolve()  # a link's own place may be on another file system
    folder.parent.mkdir(parents=True, exist_ok=True)
    # not of `tempfile`, whose folders are the owner's alone: the umask decides, as it does of any folder
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:12]}")
    temporary.mkdir()
    try:
        yield temporary
        mode = stat.S_IMODE(temporary.stat().st_mode)
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode & 0o666)  # libraries that write by way of a temporary file leave it to the owner
                sync_file(file)
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


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file beside `path`, for those that open files themselves; see `atomic_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        sync_file(temporary)
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


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for the block, waiting for its holder; the kernel frees it when a holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


CACHE_VARIABLE = "UNIATTN_PL_CACHE"


def cache_folder() -> Path:
    """The folder of what is kept for later runs: $UNIATTN_PL_CACHE, or uniattn_pl in the user's cache folder."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "uniattn_pl")
    # a variable in a job script or a container file may hold a literal ~
    return Path(os.path.expanduser(os.environ.get(CACHE_VARIABLE) or default))
