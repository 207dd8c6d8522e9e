"""The records of all shards in one shuffled order, the same on every rank and in every worker process.

A buffer is filled with records, shuffled, and emptied before it is filled again. What is in it, and in which order it
leaves it, follows from the seed, the pass over the shards and where it began to be filled: so that place, a few
numbers, is all there is to keep of a stream, and the buffer is read again where one goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import torch

from uniattn_pl.data.records import Record
from uniattn_pl.data.streaming.shards import Shard
from uniattn_pl.errors import UserError

VERSION = 1
"""Counts up when the same place means other rows, so that checkpoints of former versions are not gone on from."""
CHUNK = 32  # units that are tokenised together, by one worker process
PIECES = 64  # records of one text that stay together


@dataclass(frozen=True)
class Place:
    """A chunk of a stream, and where its buffer began to be filled.

    Attributes:
        epoch: passes over all shards before this one.
        block: how often the buffer was filled in this pass before.
        shard, record: where this filling begins: the shard by its place in the order of this pass.
        read: records of this pass before it.
        chunk: chunks that left the buffer before this one.
    """

    epoch: int = 0
    block: int = 0
    shard: int = 0
    record: int = 0
    read: int = 0
    chunk: int = 0

    def numbers(self) -> list[int]:
        """The place as it is saved; `Place(*numbers)` reads it."""
        return list(astuple(self))


Unit = list[Record]  # one record, or the pieces of one text, which stay together


class RowStream:
    """Records of shards, pass after pass without an end.

    Args:
        shards: in order.
        starts: by number of a shard, records at its beginning that are passed over, since they are held out.
        buffer: records that are held and shuffled together; 1: none are shuffled, and shards come in their order.
        seed: of the order.
    """

    def __init__(self, shards: Sequence[Shard], *, starts: Mapping[int, int], buffer: int, seed: int) -> None:
        self.shards, self.starts, self.buffer, self.seed = shards, starts, buffer, seed

    def chunks(self, place: Place) -> Iterator[tuple[Place, int, list[Unit]]]:
        """Yield chunk after chunk from a place on: where it is, the number in its pass of its first record, its units.

        Raises:
            UserError: a shard is damaged, or no shard has a record.
        """
        while True:
            empty = True
            for found in self._pass(place):
                empty = False
                yield found
            if empty and place.shard == place.record == 0:
                raise UserError("the shards of the stream hold no record that is not held out.")
            place = Place(place.epoch + 1)

    def _pass(self, place: Place) -> Iterator[tuple[Place, int, list[Unit]]]:
        block, held, start = list[Unit](), 0, place
        for shard, record, unit in self._units(place):
            if held >= (CHUNK if self.buffer == 1 else self.buffer):
                yield from self._emptied(block, start)
                start = Place(place.epoch, start.block + 1, shard, record, start.read + held)
                held = 0
            block.append(unit)
            held += len(unit)
        yield from self._emptied(block, start)

    def _emptied(self, block: list[Unit], start: Place) -> Iterator[tuple[Place, int, list[Unit]]]:
        """The chunks of a full buffer, which is empty behind them."""
        order = self._order("block", start.epoch, start.block, len(block))
        first = start.read
        for number, begin in enumerate(range(0, len(block), CHUNK)):
            units = [block[index] for index in order[begin : begin + CHUNK]]
            if number >= start.chunk:
                yield replace(start, chunk=number), first, units
            first += sum(map(len, units))
        block.clear()

    def _units(self, place: Place) -> Iterator[tuple[int, int, Unit]]:
        """The units of a pass from where a block begins, each with the place it is found at."""
        order = self._order("shards", place.epoch, 0, len(self.shards))
        first = place.record
        for position in range(place.shard, len(order)):
            number = max(first, self.starts.get(order[position], 0))
            unit: Unit = []
            for record in self.shards[order[position]].records(number):
                if unit and not (_continues(unit[-1]) and len(unit) < PIECES):
                    yield position, number, unit
                    number, unit = number + len(unit), []
                unit.append(record)
            if unit:
                yield position, number, unit
            first = 0

    def _order(self, what: str, epoch: int, block: int, count: int) -> list[int]:
        if self.buffer == 1:
            return list(range(count))
        said = f"{self.seed} {what} {epoch} {block}".encode()
        seed = int.from_bytes(hashlib.sha256(said).digest()[:8], "big") >> 1
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def _continues(record: Record) -> bool:
    return isinstance(record.value, dict) and record.value.get("continues") is True
