"""Plans as plain data: what model folders, plan files, search records and manifests hold, and every form they had.

Format 2: `{"format": 2, "num_layers": N, "rows": [{"index", "role", "source", "compensation", "heads_from"}]}`, with
the rows that differ from the unmodified model; a row has kv_heads, window, sinks or cross_map where it has any. Format
1 had no number and told a row's role by where its map, keys and values come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from uniattn_pl.plan.compensation import AUTO_RANK, Compensation
from uniattn_pl.plan.layer_row import LayerRow
from uniattn_pl.plan.plan_error import PlanError
from uniattn_pl.plan.roles import FULL

FORMAT = 2
FORMER_ROLES = {"share": "share_kv"}
"""Names that roles had in files of format 1."""

_SIZES = {"kv_heads": int, "window": int, "sinks": int, "merge": str, "cross_map": bool}
_WORDS = {int: "a whole number", str: "a name", bool: "true or false"}
_ROW_KEYS = {"index", "role", "source", "compensation", "heads_from", *_SIZES}
_FORMER_KEYS = {"index", "map_from", "key_from", "value_from"}
_FORMER_OPTIONS = {
    "dropped": False,
    "compensated": False,
    "compensation_input": "attention_input",
    "compensation_output": "attention_output",
    "compensation_rank": None,
    "heads_from": None,
}


def saved_form(rows: Sequence[LayerRow]) -> dict[str, Any]:
    """Plain data for JSON; only rows that differ from the unmodified model are listed."""
    return {"format": FORMAT, "num_layers": len(rows), "rows": [_saved_row(row) for row in rows if row.role != FULL]}


def _saved_row(row: LayerRow) -> dict[str, Any]:
    """Sizes are there where a row has them, so that plans without any read as they always did."""
    plain = asdict(LayerRow(row.index))
    return {key: value for key, value in asdict(row).items() if key not in _SIZES or value != plain[key]}


# A number that a damaged file gives must not decide how much memory is taken.
MOST_LAYERS = 10_000


def read_rows(data: Mapping[str, Any]) -> list[LayerRow]:
    """Every row of a saved plan of any format.

    Raises:
        PlanError: a row of format 1 contradicts itself, or the format is newer than this version.
        KeyError, TypeError, ValueError, OverflowError: this is no saved plan.
    """
    saved_format = data.get("format", 1)
    if saved_format not in (1, FORMAT):
        raise PlanError(f"this layer plan has format {saved_format!r}; this version reads formats 1 and {FORMAT}.")
    count = int(data["num_layers"])
    if not 1 <= count <= MOST_LAYERS:
        raise PlanError(f"num_layers is {count}; a plan has 1 to {MOST_LAYERS} layers.")
    rows = [LayerRow(index) for index in range(count)]
    read_row = _former_row if saved_format == 1 else _row
    problems = []
    for saved in data["rows"]:
        index = int(saved["index"])
        if not 0 <= index < len(rows):
            raise PlanError(f"the model has layers 0 to {len(rows) - 1}; there is no layer {index}.")
        try:
            rows[index] = read_row(saved)
        except PlanError as error:
            problems += error.problems
    if problems:
        raise PlanError(*problems)
    return rows


def current_role(name: str) -> str:
    """A role's name as it is now, from a file of any version."""
    return FORMER_ROLES.get(name, name)


def former_role(name: str) -> str:
    """A role's name as files of format 1 have it."""
    return next((former for former, current in FORMER_ROLES.items() if current == name), name)


def identity(rows: Sequence[LayerRow]) -> str:
    """Text that equal plans have in common, in this version and in those that wrote format 1: runs are found by it."""
    expressible = all(
        row.role in _LINKS and not row.cross_map and not (row.compensation and row.compensation.bias) for row in rows
    )
    if not expressible:
        return json.dumps(saved_form(rows), sort_keys=True)
    former = {"num_layers": len(rows), "rows": [_former_form(row) for row in rows if row.operated]}
    return json.dumps(former, sort_keys=True)


def _row(saved: Mapping[str, Any]) -> LayerRow:
    unknown = set(saved) - _ROW_KEYS
    if unknown:
        raise ValueError(f"unknown key {', '.join(sorted(unknown))}")
    index, source, placed = int(saved["index"]), saved.get("source"), saved.get("compensation")
    if source is not None and not isinstance(source, int):
        raise ValueError(f"the source of layer {index} is {source!r}, not a layer's index")
    compensation = None if placed is None else _compensation(index, **placed)
    sizes = {key: saved[key] for key in _SIZES if key in saved}
    for key, size in sizes.items():
        if type(size) is not _SIZES[key]:
            raise ValueError(f"{key} of layer {index} is {size!r}, not {_WORDS[_SIZES[key]]}")
    return LayerRow(index, str(saved["role"]), source, compensation, _heads(saved.get("heads_from")), **sizes)


def _former_row(saved: Mapping[str, Any]) -> LayerRow:
    """A row of format 1. Raises PlanError where its links fit no role."""
    if not _FORMER_KEYS <= set(saved) <= _FORMER_KEYS | set(_FORMER_OPTIONS):
        raise ValueError(f"a row has the keys {', '.join(sorted(saved))}")
    row = {**_FORMER_OPTIONS, **saved}
    index, links = int(row["index"]), (row["map_from"], row["key_from"], row["value_from"])
    role, source = _former_role(index, links, dropped=row["dropped"])
    compensation = None
    if row["compensated"]:
        compensation = _compensation(
            index, input=row["compensation_input"], output=row["compensation_output"], rank=row["compensation_rank"]
        )
    return LayerRow(index, role, source, compensation, _heads(row["heads_from"]))


def _former_role(index: int, links: tuple[Any, Any, Any], *, dropped: bool) -> tuple[str, int | None]:
    """The role and the source that (map_from, key_from, value_from) meant."""
    where, (map_from, key_from, _) = f"layer {index}", links
    if dropped:
        role, source, wrong = "drop", None, f"{where} is dropped but still reads attention."
    elif map_from != index:
        role, source = "reuse", map_from
        wrong = f"{where} reuses a map and must use its own values and no keys."
    elif key_from == index:
        role, source, wrong = "full", None, f"{where} has its own keys but the values of another layer."
    else:
        role, source, wrong = "share_kv", key_from, f"{where} takes keys and values from different layers."
    if links != _LINKS[role](index, source):
        raise PlanError(wrong)
    return role, source


# Role -> (map_from, key_from, value_from) of a row with this index and source, in format 1.
_LINKS: dict[str, Any] = {
    "full": lambda index, _: (index, index, index),
    "reuse": lambda index, source: (source, None, index),
    "share_kv": lambda index, source: (index, source, source),
    "drop": lambda *_: (None, None, None),
}


def _former_form(row: LayerRow) -> dict[str, Any]:
    compensation = row.compensation or Compensation()
    map_from, key_from, value_from = _LINKS[row.role](row.index, row.source)
    return {
        "index": row.index,
        "map_from": map_from,
        "key_from": key_from,
        "value_from": value_from,
        "dropped": row.role == "drop",
        "compensated": row.compensated,
        "compensation_input": compensation.input,
        "compensation_output": compensation.output,
        "compensation_rank": compensation.rank,
        "heads_from": row.heads_from,
    }


def _compensation(index: int, **fields: Any) -> Compensation:
    """A W_c as it was saved. Raises PlanError with the layer, where it is placed at no such place."""
    rank = fields.get("rank")
    if rank not in (None, AUTO_RANK) and not isinstance(rank, int):
        raise ValueError(f"the rank of the W_c of layer {index} is {rank!r}, not a whole number")
    try:
        return Compensation(**fields)
    except PlanError as error:
        raise PlanError(*(f"layer {index}: {problem}" for problem in error.problems)) from error


def _heads(heads: Sequence[Any] | None) -> tuple[int, ...] | None:
    return None if heads is None else tuple(int(head) for head in heads)
