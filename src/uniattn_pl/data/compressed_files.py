"""Data files as bytes, unpacked as they are read where they are packed by gzip or zstd."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from uniattn_pl.config.sections.data_section import COMPRESSIONS
from uniattn_pl.errors import UserError
from uniattn_pl.file_contents import mistaken_content

_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}


def kind_of_file(path: Path) -> str:
    """The suffix that says what a file holds, whatever it is packed by: `.jsonl` of `rows.jsonl.gz`."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return name.suffix.lower()


def mistaken_data(path: Path) -> str:
    """As `mistaken_content`, but a file may be packed as its name says, and must be. Raises UserError likewise."""
    magic = _MAGIC.get(path.suffix.lower())
    if magic is None:
        return mistaken_content(path)
    with path.open("rb") as file:
        if file.read(len(magic)) == magic:
            return ""
    return mistaken_content(path) or f" is not packed by {COMPRESSIONS[path.suffix.lower()]}, as its name says."


@contextmanager
def opened_bytes(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a data file, unpacked.

    Raises:
        UserError: what was packed is damaged, or ends too early.
        OSError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in COMPRESSIONS:
        with path.open("rb") as file:
            yield file
        return
    try:
        with cast(BinaryIO, gzip.open(path, "rb") if suffix == ".gz" else _zstd(path)) as file:
            yield file
    # gzip's own errors; OSError of Arrow, and of a disk, which says so
    except (gzip.BadGzipFile, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        packed = COMPRESSIONS[suffix]
        raise UserError(
            f"data file '{path}' is damaged, or its download or copy was interrupted ({packed}: {reason})."
        ) from error


def _zstd(path: Path) -> io.BufferedReader:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), 2**20)
