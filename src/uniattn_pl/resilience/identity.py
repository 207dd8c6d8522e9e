"""What a result rests on, by its contents, and what of it has changed: the rows, the model and its tokenizer.

Everything that is reused or resumed (a fit's phases and checkpoints, tokens, calibrations, searches, the points of a
sweep, evaluations) is compared by these digests, never by a path, a name or a count.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from uniattn_pl.files import atomic_file

TRAINING_ROWS, HELD_OUT_ROWS, MODEL, TOKENIZER = "training_rows", "held_out_rows", "model", "tokenizer"
TEACHER, TEMPLATE = "teacher", "template"
NAMES = {
    TRAINING_ROWS: "the training rows",
    HELD_OUT_ROWS: "the held-out rows",
    MODEL: "the model",
    TOKENIZER: "the tokenizer",
    TEACHER: "the teacher",
    TEMPLATE: "the chat template",
}
FILE = "identity.json"
WIDTH = 16  # bytes of one item's digest
SHOWN = 3  # items that a sentence names


@dataclass(frozen=True)
class Contents:
    """One thing that a result rests on, item by item and in order: the rows of a data set, the files of a model.

    Attributes:
        place: where it is, as the user wrote it.
        digests: of the items, `WIDTH` bytes each.
        labels: of the items: the number of a row in its source, counted from 1, or the name of a file or of a part.
        commit: of the hub's repository that it came from, where it is known.
    """

    place: str
    digests: bytes
    labels: Sequence[Any]
    commit: str | None = None

    @classmethod
    def named(cls, place: str, items: Mapping[str, bytes], commit: str | None = None) -> Contents:
        """Of items that have names, whose order says nothing; a name counts as content."""
        labels = sorted(items)
        digests = b"".join(item_digest(label.encode() + b"\0" + items[label]) for label in labels)
        return cls(place, digests, labels, commit)

    @cached_property
    def digest(self) -> str:
        """Changes with the contents or the order of any item, and with nothing else."""
        return hashlib.sha256(self.digests).hexdigest()

    @cached_property
    def items(self) -> list[bytes]:
        return [self.digests[start : start + WIDTH] for start in range(0, len(self.digests), WIDTH)]

    def difference(self, name: str, former: Contents | None) -> str:
        """A sentence about how this differs from `former`, None where nothing but its digest is known."""
        what = f"{NAMES[name]} changed"
        if former is None:
            return f"{what} (now: {self.place})."
        if self.commit != former.commit and former.commit is not None:
            return f"{what}: {self.place} was at commit {former.commit} and is now at {self.commit or 'another'}."
        # the shards of a stream have names, as files have; rows have numbers
        are_rows = name in (TRAINING_ROWS, HELD_OUT_ROWS) and not any(
            isinstance(label, str) for label in (*self.labels[:1], *former.labels[:1])
        )
        return self._rows(what, former) if are_rows else self._parts(what, former)

    def _rows(self, what: str, former: Contents) -> str:
        known, new = Counter(former.items), []
        for item, label in zip(self.items, self.labels, strict=True):
            if known[item]:
                known[item] -= 1
            else:
                new.append(label)
        count, before = len(self.items), len(former.items)
        if new:
            are = "is" if len(new) == 1 else "are"
            return (
                f"{what}: {len(new)} of the {count} of {self.place} {are} not among the former {before}, "
                f"row {min(new)} first."
            )
        if count != before:
            return f"{what}: {before - count} of the {before} of {self.place} are gone."
        moved = [label for a, b, label in zip(self.items, former.items, self.labels, strict=True) if a != b]
        return f"{what}: the {count} of {self.place} have another order, row {min(moved)} first."

    def _parts(self, what: str, former: Contents) -> str:
        now, before = (
            dict(zip(self.labels, self.items, strict=True)),
            dict(zip(former.labels, former.items, strict=True)),
        )
        changed = [str(label) for label in sorted({*now, *before}) if now.get(label) != before.get(label)]
        more = "" if len(changed) <= SHOWN else f" and {len(changed) - SHOWN} more"
        return f"{what}: {', '.join(changed[:SHOWN])}{more} ({self.place})."


Identity = Mapping[str, Contents]  # by a key of `NAMES`


def item_digest(content: bytes) -> bytes:
    """Of one item: `WIDTH` bytes."""
    return hashlib.sha256(content).digest()[:WIDTH]


def plain_digest(value: Any) -> bytes:
    """Of plain data as JSON means it: the order of keys, and how it was written, change nothing."""
    return item_digest(json.dumps(value, sort_keys=True).encode())


def digests_of(identity: Identity) -> dict[str, str]:
    """Name -> digest of its contents, as a manifest records it."""
    return {name: contents.digest for name, contents in identity.items()}


def joint_digest(digests: Mapping[str, str], names: Iterable[str] = tuple(NAMES)) -> str:
    """One digest of several contents; of all that are known by default."""
    known = {name: digests[name] for name in names if name in digests}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def changes(identity: Identity, recorded: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Name -> sentence for all that differs from what a run folder has recorded; of what it has not, nothing is known.

    Args:
        identity: what there is now.
        recorded: digests of the folder's manifest, which decide.
        folder: of the run, whose `FILE` says of which items a digest is.
    """
    changed = [name for name, contents in identity.items() if recorded.get(name, contents.digest) != contents.digest]
    former = _read(folder, recorded) if changed else {}
    return {name: identity[name].difference(name, former.get(name)) for name in changed}


def write_items(identity: Identity, folder: Path) -> None:
    """Keep what a later change is named by: items and their digests; the manifest decides what is valid of it."""
    data = {
        name: {
            "place": contents.place,
            "commit": contents.commit,
            "labels": list(contents.labels),
            "digests": contents.digests.hex(),
        }
        for name, contents in identity.items()
    }
    with atomic_file(folder / FILE) as file:
        file.write(json.dumps(data).encode())


def _read(folder: Path, recorded: Mapping[str, str]) -> dict[str, Contents]:
    """The items of `FILE` that are those of the recorded digests; a file that is absent or damaged has none."""
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
        read = {
            name: Contents(str(one["place"]), bytes.fromhex(one["digests"]), list(one["labels"]), one["commit"])
            for name, one in data.items()
        }
    # absent or not readable, no JSON or not UTF-8 or no hexadecimal digits, of another form
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {
        name: contents
        for name, contents in read.items()
        if contents.digest == recorded.get(name) and len(contents.labels) == len(contents.items)
    }
