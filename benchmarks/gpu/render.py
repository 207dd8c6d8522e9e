"""Writes the tables of a check's file into docs/RESULTS.md, between the two comments that name the file.

    python -m benchmarks.gpu.render benchmarks/gpu/2026-11-26_h100.json
    python -m benchmarks.gpu.render FILE --kernels    # and its kernels' times into the table that the package ships

A file that the page does not name yet is put behind the last one. What stands outside of the comments is left alone.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.gpu.tables import check_tables

from uniattn_pl.files import atomic_file
from uniattn_pl.kernels.triton_maps.measured_cards import PACKAGED, MeasuredTiles, write_table
from uniattn_pl.kernels.triton_maps.tile_layout import TileShape

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "RESULTS.md"
BEGIN, END = "<!-- {name}: begin, by `python -m benchmarks.gpu.render {name}` -->", "<!-- {name}: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a result of `make gpu-check`, in this repository")
    parser.add_argument("--kernels", action="store_true", help="write what the choice of kernels on this card reads")
    options = parser.parse_args()
    file: Path = options.file.resolve()
    if not file.is_relative_to(ROOT):
        parser.error(f"{file} is not below {ROOT}: a figure on the page is one that the repository holds.")
    content = json.loads(file.read_text(encoding="utf-8"))
    text = rendered(PAGE.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix(), content)
    with atomic_file(PAGE) as page:
        page.write(text.encode())
    if options.kernels:
        write_table(PACKAGED, rows_of_choice(content))


def rendered(page: str, name: str, content: dict[str, Any]) -> str:
    """The page with the tables of one file in the place of its former ones, or behind the last."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    block = f"{begin}\n\n{markdown(content)}\n{end}"
    if begin in page:
        head, _, rest = page.partition(begin)
        return head + block + rest.partition(end)[2]
    last = list(re.finditer(r"<!-- \S+: end -->\n", page))
    place = last[-1].end() if last else len(page)
    return f"{page[:place].rstrip()}\n\n{block}\n{page[place:]}"


def rows_of_choice(content: dict[str, Any]) -> list[MeasuredTiles]:
    """The times by which the package chooses: those of tiles in bfloat16, which are not an option of the user's."""
    times = ("dtype", "head_dim", "length", "stock_ms", "source_ms", "reader_ms")
    return [
        MeasuredTiles(content["card"], **{name: row[name] for name in times}, shape=TileShape(**row["shape"]))
        for row in content["rows"]
        if row.get("what") == "crossover" and row["tile_dtype"] == "bfloat16"
    ]


def markdown(content: dict[str, Any]) -> str:
    """Where it was measured, and every table."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items() if version)
    commit = (content["commit"] or "unknown")[:7] + (" and changes" if content["changed_since"] else "")
    memory = f" ({content['memory_gib']} GiB)" if content["memory_gib"] else ""
    lines = [f"{content['card'] or 'CPU'}{memory}, {content['date']}, commit {commit}; {versions}.", ""]
    for table in check_tables(content):
        lines += [f"{table.title}:", "", _line(table.columns), "|---" * len(table.columns) + "|"]
        lines += [*(_line(row) for row in table.rows), ""]
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
