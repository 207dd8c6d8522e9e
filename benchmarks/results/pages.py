"""The pages that measurements become: templates filled with numbers, which are nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import jinja2
from benchmarks.gpu.tables import markdown
from benchmarks.peers.render import table as peers_table
from benchmarks.results.measurement import Measurement, Row, read_all, to

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HERE = Path(__file__).parent
DATA, TEMPLATES = HERE / "data", HERE / "templates"
CARDS = ROOT / "benchmarks" / "gpu"
PEERS = ROOT / "benchmarks" / "peers" / "results"
NOTE = "<!-- Written by `python -m benchmarks.results`: change benchmarks/results/data or templates instead. -->\n\n"


def pages(data: Path = DATA, templates: Path = TEMPLATES) -> dict[Path, str]:
    """Each page below docs/ with its text. Raises jinja2.UndefinedError for a number that no file has."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["to"] = to
    environment.tests["several"] = lambda value: isinstance(value, list)
    environment.globals.update(numbers(read_all(data)), **cards(), peers=peers)
    files = sorted(path.relative_to(templates) for path in templates.rglob("*.md"))
    return {file: NOTE + environment.get_template(file.as_posix()).render() for file in files}


def numbers(measurements: Mapping[str, Measurement]) -> dict[str, Any]:
    """What templates know: a measurement by its name; of one without a table its figures."""
    return {name: one if one.rows or one.commands else one.figures for name, one in measurements.items()}


def cards() -> dict[str, Any]:
    """What templates know of the files of `make gpu-check`."""
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(CARDS.glob("*.json"))}

    def value(name: str, key: str, scale: float = 1, decimals: int = 0, **match: Any) -> Decimal:
        """One number of the only row that has these values."""
        (row,) = (row for row in files[name]["rows"] if match.items() <= row.items())
        return to(Decimal(row[key]) * Decimal(scale), decimals)

    return {"cards": list(files), "card": lambda name: markdown(files[name]), "card_value": value}


def peers(name: str) -> str:
    """The tables of a run of `benchmarks.peers`, one for each environment."""
    text = peers_table(json.loads((PEERS / f"{name}.json").read_text(encoding="utf-8"))).strip()
    return text.replace("### ", "## ")  # as sections of the page


def shown(value: Any) -> Any:
    """A number as text, thousands apart; a cell of several is not a number."""
    if isinstance(value, Row | Measurement | list | dict):
        raise TypeError(f"{value!r} is no single number")
    return f"{value:,}" if isinstance(value, Decimal | int) and not isinstance(value, bool) else value


def write(docs: Path = DOCS) -> list[Path]:
    """Write every page that changed; those."""
    changed = []
    for name, text in pages().items():
        file = docs / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            changed.append(file)
    return changed
