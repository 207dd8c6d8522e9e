"""SHA-256 of large files, computed once: a file that has not been written to since need not be read again."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path

from uniattn_pl.files import atomic_file, cache_folder, file_digest

# A file may be written to again within one tick of its file system's clock; what is younger is read each time.
SETTLED_S = 2.0


def known_digest(path: Path) -> str:
    """SHA-256 of a file's content, from the cache folder while the file is the one it was computed of.

    The same device, inode, size, and times of the last write and of the last change (ctime, which no program can set
    back) mean that it was not written to. Where the cache folder cannot be used, the file is read every time.

    Raises:
        OSError: the file cannot be read.
    """
    real = path.resolve()
    kept = cache_folder() / "digests" / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"
    stamp = _stamp(real)
    with suppress(OSError, ValueError, KeyError, TypeError):  # absent, not readable, not what is written below
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return str(known["sha256"])
    digest = file_digest(real)
    if _stamp(real) == stamp and time.time() - real.stat().st_ctime > SETTLED_S:
        with suppress(OSError), atomic_file(kept) as file:
            file.write(json.dumps({"path": str(real), "stamp": stamp, "sha256": digest}).encode())
    return digest


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
