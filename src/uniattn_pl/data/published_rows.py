"""Builds the files of shipped experiments from public sets: the same rows, in the same order, checked by a digest.

Rows that have an id of their own are found by it, others by a digest of what they say. White space counts in neither
digest: copies of a set differ in it. Nothing is written before all rows of a file are found and say what was published.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from uniattn_pl.config.published_sets import PublishedFile
from uniattn_pl.errors import UserError
from uniattn_pl.files import atomic_file

SHOWN = 3
TEXT_SUFFIX, LIST_SUFFIX = ".raw", ".json"
_BLANK = " \n"  # an empty line of WikiText's raw files, of which the hub keeps nothing


def build(file: PublishedFile, rows: Iterable[Mapping[str, Any]], folder: Path) -> Path:
    """Find a file's rows among those of its public set and write it.

    Args:
        file: what to build.
        rows: of the public set's split, in its order.
        folder: of the set's files.

    Raises:
        UserError: rows are not there, or they do not say what they said when their digest was published.
    """
    found = list(_chosen(file, rows) if file.chosen else (_normal(file, row) for row in rows))
    digest = digest_of(found)
    if digest != file.digest:
        raise UserError(
            f"{file.hub}, split {file.split}: its {len(found):,} rows are not the {file.rows:,} that '{file.place}' "
            f"was made of: their digest is {digest[:12]}, published is {file.digest[:12]}. The set has changed; "
            "nothing was written."
        )
    target = folder / file.place
    with atomic_file(target) as opened:
        opened.write(_written(file, found).encode())
    return target


def key_of(file: PublishedFile, row: Mapping[str, Any]) -> str:
    """What a published row is listed as: its id, or the beginning of a digest of what it says."""
    return str(row[file.key]) if file.key is not None else digest_of([row])[:16]


def digest_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of what rows say in their order, white space aside."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(_said(dict(row)), sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _said(value: Any) -> Any:
    """A value without what copies of a set differ in."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Mapping):
        return {name: _said(one) for name, one in value.items()}
    return [_said(one) for one in value] if isinstance(value, list | tuple) else value


def _chosen(file: PublishedFile, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The listed rows, in the order of the list."""
    wanted = (files("uniattn_pl.data") / "published" / file.keys).read_text(encoding="utf-8").split()
    missing, found = set(wanted), {}
    for row in rows:
        normal = _normal(file, row)
        key = key_of(file, normal)
        if key in missing:
            missing.remove(key)
            found[key] = normal
            if not missing:
                break
    if missing:
        some = [key for key in wanted if key in missing][:SHOWN]
        raise UserError(
            f"{file.hub}, split {file.split}: {len(missing):,} of the {file.rows:,} rows of '{file.place}' are not "
            f"there ({', '.join(some)}{' ...' if len(missing) > SHOWN else ''}); nothing was written."
        )
    yield from (found[key] for key in wanted)


def _normal(file: PublishedFile, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the public set with the fields that the file has; of a conversation its first round."""
    turns = row.get("messages")
    if turns is not None and "input" in file.fields:
        said = {turn["role"]: turn["content"] for turn in reversed(turns)}
        row = {**row, "input": said.get("user", ""), "output": said.get("assistant", "")}
    return {name: row.get(name) for name in file.fields}


def _written(file: PublishedFile, rows: list[dict[str, Any]]) -> str:
    if file.place.endswith(TEXT_SUFFIX):
        return "".join(row[file.fields[0]] or _BLANK for row in rows)
    if file.place.endswith(LIST_SUFFIX):
        return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
