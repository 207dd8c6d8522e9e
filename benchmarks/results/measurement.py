"""A measurement as it is committed: a table of numbers, further figures, and where all of them come from.

Numbers are read as they are written, so that `3.50` keeps its second decimal. A cell is one of

- a number, or text (`-`, `no room`);
- `{"value": 3.65, "interval": [3.50, 3.80]}`: with a 95 % interval; `quartiles` and `range` likewise; `sd` and `n` over
  seeds; `"bold": true` for what is to be seen first;
- `[100, 80]`: several numbers under one heading, `join` of the column between them;
- `{"show": "at most {}", "values": [0.88]}`: numbers in words of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

Cell = Any
SPREADS = {"interval": " [{}, {}]", "quartiles": " ({}-{})", "range": " ({} to {})"}
PROVENANCE = ("commands", "model", "data", "machine", "seeds", "lead")


@dataclass(frozen=True)
class Column:
    """What is said of all cells below a heading.

    Attributes:
        key: its name in templates.
        unit: of the numbers, for readers of the file.
        suffix: behind each number on the page, such as ` %`.
        join: between several numbers of a cell.
        metric: of MLflow's runs, where it was read from.
        scale, decimals, significant: from a number as it was logged to the one that is shown; None where it is written
            as it is to be shown.
    """

    key: str
    title: str
    unit: str = ""
    suffix: str = ""
    join: str = " / "
    metric: str = ""
    scale: Decimal = Decimal(1)
    decimals: int | None = None
    significant: int | None = None

    def number(self, value: Decimal | int, like: Decimal | int | None = None) -> str:
        """A number with thousands apart; `like` decides on its decimals where these are significant ones."""
        shown = Decimal(value) * self.scale if self.scale != 1 else Decimal(value)
        decimals = self.decimals
        if self.significant is not None:
            model = Decimal(value if like is None else like) * self.scale
            decimals = max(0, self.significant - 1 - (math.floor(math.log10(abs(model))) if model else 0))
        return f"{shown if decimals is None else to(shown, decimals):,}"


def to(number: Decimal | int, decimals: int) -> Decimal:
    """Rounded half up, as a reader rounds."""
    return Decimal(number).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)


def cell_text(column: Column, cell: Cell) -> str:
    """A cell as the page shows it."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, list):
        return column.join.join(one if isinstance(one, str) else column.number(one) + column.suffix for one in cell)
    if not isinstance(cell, dict):
        return column.number(cell) + column.suffix
    if "show" in cell:
        return str(cell["show"]).format(*(f"{Decimal(value):,}" for value in cell["values"]))
    value = cell["value"]
    number = column.number(value)
    text = f"**{number}**{column.suffix}" if cell.get("bold") else number + column.suffix
    for kind, form in SPREADS.items():
        if kind in cell:
            text += form.format(*(column.number(bound, value) for bound in cell[kind]))
    if "sd" in cell:
        text += f" ± {column.number(cell['sd'], value)}" + (f" (n={cell['n']})" if "n" in cell else "")
    return text


class Row(Mapping[str, Any]):
    """A row in templates: `row.loss` is the number, `row.text.loss` the cell as the table shows it."""

    def __init__(self, columns: Sequence[Column], cells: Mapping[str, Cell]) -> None:
        self.columns, self.cells = {column.key: column for column in columns}, cells

    def __getitem__(self, key: str) -> Any:
        cell, column = self.cells[key], self.columns[key]
        if isinstance(cell, dict):
            cell = cell["values"] if "show" in cell else cell["value"]
            cell = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
        if isinstance(cell, list | str):
            return cell
        return Decimal(column.number(cell).replace(",", ""))

    def __iter__(self) -> Iterator[str]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def text(self) -> dict[str, str]:
        return {key: cell_text(self.columns[key], cell) for key, cell in self.cells.items()}


@dataclass(frozen=True)
class Measurement(Mapping[str, Row]):
    """One file of benchmarks/results/data.

    Attributes:
        name: of the file, which templates know it by.
        commands: what makes it again.
        seeds: how many there are of each row; `lead` says that this is too few to call it a fact.
        config, settings: what was set of the experiment, by key, and for single rows, by their keys.
        figures: numbers beside the table, by name.
    """

    name: str
    title: str
    commands: tuple[str, ...]
    model: str
    data: str
    machine: str
    seeds: int | None
    lead: bool
    took: str = ""
    date: str = ""
    commit: str = ""
    note: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    rows: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Measurement:
        """Read a file. Raises ValueError where something is missing or not known."""
        content = json.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)
        missing = [key for key in ("title", *PROVENANCE) if key not in content]
        if missing:
            raise ValueError(f"{file}: {', '.join(missing)} missing")
        columns = tuple(Column(**column) for column in content.pop("columns", ()))
        rows = {row.pop("key"): row for row in content.pop("rows", ())}
        for key, row in rows.items():
            if row.keys() != {column.key for column in columns}:
                raise ValueError(f"{file}: the row '{key}' has other cells than there are columns")
        commands = tuple(content.pop("commands"))
        return cls(name=file.stem, commands=commands, columns=columns, rows=rows, **content)

    def __getitem__(self, key: str) -> Row:
        return Row(self.columns, self.rows[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def table(self, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> str:
        """The table in Markdown, or these columns and rows of it."""
        shown = [column for column in self.columns if not columns or column.key in columns]
        lines = [_line([column.title for column in shown]), "|---" * len(shown) + "|"]
        for key in rows or self.rows:
            lines.append(_line([cell_text(column, self.rows[key][column.key]) for column in shown]))
        return "\n".join(lines)

    def source(self) -> str:
        """Where it comes from, as a paragraph: what ran, on what, how often."""
        commands = " and ".join(f"`{command}`" for command in self.commands)
        how_often = "" if self.seeds is None else f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        lead = "a lead, not a fact" if self.lead else ""
        facts = {
            "Model": self.model,
            "Data": self.data,
            "Machine": self.machine,
            "Took": self.took,
            "Measured": ", ".join(part for part in (self.date, self.commit and f"commit {self.commit}") if part),
            "Seeds": ", ".join(part for part in (how_often, lead) if part),
        }
        lines = [f"- **{name}**: {fact}." for name, fact in facts.items() if fact]
        return "\n".join([f"- **Command**: {commands}." if commands else f"- **Made by** {self.note}.", *lines])


def read_all(folder: Path) -> dict[str, Measurement]:
    """Every measurement, by the name of its file."""
    return {file.stem: Measurement.read(file) for file in sorted(folder.glob("*.json"))}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
