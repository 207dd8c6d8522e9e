"""Where the rows of public sets come from: the hub, or a copy of its Parquet shards in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from uniattn_pl.config.published_sets import SETS, PublishedFile
from uniattn_pl.data.hub import stream_hub
from uniattn_pl.data.published_rows import build
from uniattn_pl.errors import UserError


def build_set(name: str, folder: Path, *, mirror: Path | None, tell: Callable[[str], None]) -> None:
    """Build every file of a published set that is not there yet.

    Args:
        name: a key of `SETS`.
        folder: where the files are to be.
        mirror: a folder of OWNER/NAME/**/SPLIT*.parquet, which is read in place of the hub.
        tell: is given a line for each file.

    Raises:
        UserError: as `build` and `stream_hub`; the mirror lacks a set.
    """
    for file in SETS[name].files:
        if (folder / file.place).exists():
            tell(f"{folder / file.place} is there already")
            continue
        tell(f"reading {file.hub}, split {file.split}, for {file.rows:,} rows")
        rows = _mirrored(file, mirror) if mirror is not None else _of_hub(file)
        tell(f"wrote {build(file, rows, folder)}")


def _of_hub(file: PublishedFile) -> Iterator[Mapping[str, Any]]:
    return stream_hub(file.hub, file.split, config=file.config, revision=file.revision)


def _mirrored(file: PublishedFile, mirror: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a copied set, shard after shard."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    place = mirror / file.hub
    within = place / file.config if file.config is not None and (place / file.config).is_dir() else place
    shards = sorted(within.rglob(f"{file.split}*.parquet"))
    if not shards:
        raise UserError(f"--mirror: there is no '{within}/**/{file.split}*.parquet', a shard of {file.hub}.")
    for shard in shards:
        try:
            for batch in ParquetFile(shard).iter_batches():
                yield from batch.to_pylist()
        except (ArrowException, OSError) as error:
            raise UserError(f"--mirror: '{shard}' cannot be read: {' '.join(str(error).split())[:300]}") from None
