"""A report's table as a file of numbers that pages are written from, with where they come from."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.config import LoadedConfig
from uniattn_pl.printed_commands import config_words
from uniattn_pl.redaction import redact
from uniattn_pl.reporting.cells import BEST, MISSING, Cell, Table
from uniattn_pl.reporting.columns import ACCURACY, BYTES, LOSS, PERPLEXITY, PLAIN, RETAINED, SECONDS, Column, Unit
from uniattn_pl.reporting.gaps import CommandLine
from uniattn_pl.tracking import tags

if TYPE_CHECKING:
    from mlflow.entities import Run

# How pages show a unit's numbers, by the unit that a column has: factor, suffix, decimals or significant digits.
_SHOWN: dict[Unit, dict[str, Any]] = {
    ACCURACY: {"unit": "%", "scale": 100, "decimals": 1},
    RETAINED: {"unit": "%", "suffix": " %", "scale": 100, "decimals": 1},
    LOSS: {"unit": "nats per token", "decimals": 3},
    PERPLEXITY: {"decimals": 2},
    SECONDS: {"unit": "s", "significant": 3},
    PLAIN: {"significant": 3},
    BYTES: {"unit": "MiB", "suffix": " MiB", "scale": 2**-20, "significant": 3},
}
_PRIVATE = ("tracking", "report", "sweep", "trainer")  # where things are and how they are shown, not what was measured


def results_json(table: Table, loaded: LoadedConfig, line: CommandLine) -> str:
    """The table with its provenance as JSON, every value as it was logged; times are UTC.

    Args:
        table: rows by columns, as the report shows them.
        loaded: the experiment that all rows begin from.
        line: what the user has given, for the commands that make the runs and the table again.
    """
    config = loaded.config
    runs = [member.run for row in table.rows for member in row.members if member.run is not None]
    counts = [sum(member.finished for member in row.members) for row in table.rows]
    seeds = min((number for number in counts if number), default=0)
    names = _keys(row.name for row in table.rows)
    content = {
        "title": config.report.title or config.name,
        "commands": _commands(line),
        "model": tags.short_name(config.model.source),
        "data": f"{tags.data_name(config.data)}, at most {config.data.max_length} tokens",
        "machine": "; ".join(_tagged(runs, tags.MACHINE)) or "unknown",
        "date": _newest(runs),
        "commit": ", ".join(commit[:7] for commit in _tagged(runs, tags.COMMIT)),
        "seeds": seeds,
        "lead": seeds < 2,
        "config": _config(loaded),
        "settings": {name: list(row.settings) for name, row in zip(names, table.rows, strict=True)},
    }
    keys = _keys(column.heading for column in table.columns)
    columns = [{"key": "row", "title": "row"}, *(_column(*pair) for pair in zip(keys, table.columns, strict=True))]
    rows = []
    for name, row, cells, marks in zip(names, table.rows, table.cells, table.marks(), strict=True):
        shown = {key: _cell(cell, mark == BEST) for key, cell, mark in zip(keys, cells, marks, strict=True)}
        rows.append({"key": name, "row": row.name, **shown})
    return one_row_a_line({**content, "columns": columns, "rows": rows})


def _commands(line: CommandLine) -> list[str]:
    """Without the interpreter and the store of this machine."""
    words = config_words(line.files, [word for word in line.overrides if not word.startswith("tracking.")])
    names = ("sweep" if line.is_sweep else "fit", "report")
    return [shlex.join(["python", "-m", "uniattn_pl", name, *words]) for name in names]


def _column(key: str, column: Column) -> dict[str, Any]:
    source = [part.metric + ("" if part.step is None else f"@{part.step}") for part in column.measured]
    return {"key": key, "title": column.heading, "metric": " ".join(source), **_SHOWN.get(column.unit, {})}


def _cell(cell: Cell, best: bool) -> Any:
    """A value alone as a number; with spread, interval or a mark as an object."""
    if cell.mean is None:
        return MISSING
    content: dict[str, Any] = {"value": cell.mean}
    if cell.spread is not None:
        content |= {"sd": cell.spread, "values": list(cell.values)}
        content |= {"n": len(cell.values)} if len(cell.values) < cell.expected else {}
    if cell.interval is not None:
        content["interval"] = list(cell.interval)
    if best:
        content["bold"] = True
    return content if len(content) > 1 else cell.mean


def _config(loaded: LoadedConfig) -> dict[str, Any]:
    """What files and overrides have set, by key; the rest are defaults of the commit. Of paths the last name."""
    values = {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in loaded.flatten().items()
    }
    given = (key for key, origin in loaded.provenance.items() if origin != "default" and key in values)
    return {key: values[key] for key in sorted(given) if key.partition(".")[0] not in _PRIVATE}


def _keys(names: Iterable[str]) -> list[str]:
    """A word for each name, by which templates ask for it; equal ones are numbered."""
    keys = ["row"]  # the column of names
    for name in names:
        key = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        numbered = (f"{key}_{number}" for number in count(2))
        keys.append(key if key and key not in keys else next(other for other in numbered if other not in keys))
    return keys[1:]


def _tagged(runs: Sequence[Run], tag: str) -> list[str]:
    return list(dict.fromkeys(run.data.tags[tag] for run in runs if tag in run.data.tags))


def _newest(runs: Sequence[Run]) -> str:
    ended = max((run.info.end_time or 0 for run in runs), default=0)
    return datetime.fromtimestamp(ended / 1000, UTC).date().isoformat() if ended else ""


def one_row_a_line(content: Mapping[str, Any]) -> str:
    """JSON in which a command, a column or a row is one line, so that a changed number is one changed line."""
    parts = []
    for key, value in content.items():
        if key in ("columns", "rows", "commands"):
            inner = ",\n".join(f"    {_one(one)}" for one in value)
            parts.append(f"  {_one(key)}: [\n{inner}\n  ]")
        else:
            parts.append(f"  {_one(key)}: {_one(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _one(value: Any) -> str:
    return json.dumps(redact(value), ensure_ascii=False)
