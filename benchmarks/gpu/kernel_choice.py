"""Writes a check's times of kernels into the table by which the package chooses on such a card.

    python -m benchmarks.gpu.kernel_choice benchmarks/gpu/FILE.json

The figures of all files are on docs/results/gpu.md, by `python -m benchmarks.results`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from uniattn_pl.kernels.triton_maps.measured_cards import PACKAGED, MeasuredTiles, write_table
from uniattn_pl.kernels.triton_maps.tile_layout import TileShape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a result of `make gpu-check`")
    content = json.loads(parser.parse_args().file.read_text(encoding="utf-8"))
    write_table(PACKAGED, rows_of_choice(content))


def rows_of_choice(content: dict[str, Any]) -> list[MeasuredTiles]:
    """The times by which the package chooses: those of tiles in bfloat16, which are not an option of the user's."""
    times = ("dtype", "head_dim", "length", "stock_ms", "source_ms", "reader_ms")
    return [
        MeasuredTiles(content["card"], **{name: row[name] for name in times}, shape=TileShape(**row["shape"]))
        for row in content["rows"]
        if row.get("what") == "crossover" and row["tile_dtype"] == "bfloat16"
    ]


if __name__ == "__main__":
    main()
