"""Hub data sets as shards that `datasets` reads over the network, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from uniattn_pl.data.hub import cannot_load, hub_commit
from uniattn_pl.data.records import Record, row_place
from uniattn_pl.data.streaming.shards import Shard
from uniattn_pl.errors import UserError
from uniattn_pl.resilience.identity import item_digest


@dataclass(frozen=True)
class HubShard:
    """One of the files that a hub data set is streamed from."""

    source: str
    split: str
    number: int
    count: int
    commit: str | None

    @property
    def name(self) -> str:
        return f"{self.split}, shard {self.number + 1} of {self.count}"

    def records(self, first: int = 0) -> Iterator[Record]:
        """As of `Shard`, read over the network as they are asked for."""
        rows: Any = _opened(self.source, self.split, self.commit).shard(self.count, self.number)
        index = first
        try:
            for index, value in enumerate(rows.skip(first), first):
                yield Record(value, partial(row_place, f"{self.source} ({self.name})", index))
        except Exception as error:  # the network, or what `datasets` makes of a damaged file: its own words say it
            reason = " ".join(str(error).split())
            raise UserError(
                f"hub data set '{self.source}', {self.name}, cannot be read after row index {index}: {reason}"
            ) from error

    def size(self) -> None:
        """As of `Shard`."""
        return

    def contents(self) -> bytes:
        """The commit of the data set, where the hub tells it."""
        return item_digest(f"{self.source}\0{self.name}\0{self.commit}".encode())


@lru_cache(maxsize=8)
def _opened(source: str, split: str, commit: str | None) -> Any:
    """A split of a hub data set as `datasets` streams it. Raises what `datasets` does."""
    import datasets

    return datasets.load_dataset(source, split=split, streaming=True, revision=commit)


def hub_shards(source: str, split: str) -> list[Shard]:
    """The files of one split of a hub data set, at the commit that it has now.

    Raises:
        UserError: the hub has no such data set or split, or cannot be reached.
    """
    commit = hub_commit(source)
    try:
        count = int(_opened(source, split, commit).num_shards)
    except Exception as error:  # `datasets` raises many types; each becomes one sentence with its own words
        raise UserError(cannot_load(source, split, error)) from None
    return [HubShard(source, split, number, count, commit) for number in range(count)]
