"""Makes what README.md shows of measurements: the figure and the table of one sweep, and what the quickstart prints.

    python benchmarks/readme.py                       # from the committed files; seconds
    python benchmarks/readme.py --quickstart LOG      # after: COLUMNS=80 make quickstart > LOG

No number of README is typed: its blocks come from `benchmarks/results/data/table1_medical.json` and from
`docs/quickstart.txt`, which is what the quickstart printed, without its progress.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from uniattn_pl.display.figure_style import PALETTE, draw_front, images, new_axes, new_figure, set_legend, set_title
from uniattn_pl.plan.roles import DROPPED, MIXED, REUSED, SHARED_KV, UNMODIFIED
from uniattn_pl.reporting.label_placement import Dot, place_labels

ROOT = Path(__file__).parents[1]
README, RECORDED = ROOT / "README.md", ROOT / "docs/quickstart.txt"
TABLE, FIGURE = ROOT / "benchmarks/results/data/table1_medical.json", ROOT / "docs/figures"
NAME = "quality_by_cache"
MECHANISMS = {
    "llmdrop": DROPPED,
    "uniattn": REUSED,
    "shared": REUSED,
    "cla": SHARED_KV,
    "search": MIXED,
    "theorem37": REUSED,
}
# The rows of the sweep that README shows, and the columns; the whole table is in docs/RESULTS.md.
SHOWN = (
    "post_train",
    "uniattn",
    "uniattn_greedy",
    "search_80",
    "llmdrop_half",
    "cla_half",
    "search_60",
    "llmdrop_full",
)
PROGRESS = re.compile(r"^(bench  \d+/|\[\d+/\d+\] .*: running)")
INTERPRETER = re.compile(r"\S+/python(?= -m )")  # of the machine that it was recorded on


def table() -> dict[str, Any]:
    """The measured sweep, as it is committed."""
    read: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return read


def draw() -> dict[str, bytes]:
    """File name -> image: held-out loss over the KV cache of every row."""
    figure = new_figure(8, 6.4)
    axes = new_axes(figure)
    dots: list[Dot] = []
    handles: dict[str, Any] = {}
    for row in table()["rows"]:
        mechanism = next((kind for name, kind in MECHANISMS.items() if row["key"].startswith(name)), UNMODIFIED)
        loss, color = row["held_out"]["value"], PALETTE[mechanism]
        handles[mechanism] = axes.scatter(
            row["cache"],
            loss,
            s=42,
            edgecolors=color,
            facecolors="white" if mechanism == UNMODIFIED else color,
            linewidths=1.5,
            label=mechanism,
        )
        dots.append(Dot(row["cache"], loss, _plain(row["row"])))
    front = draw_front(axes, [(dot.x, dot.y) for dot in dots])
    axes.set_xlabel("KV cache (% of the unmodified model's)")
    axes.set_ylabel("held-out loss (nats per response token)")
    axes.margins(0.15)
    set_title(axes, "Held-out loss over KV cache", "SmolLM2-135M after 100 steps on medical rows, one seed")
    place_labels(axes, dots, front=front, fontsize=7)
    set_legend(figure, axes, [*handles.values(), *(line for line in axes.lines if line.get_label() == "Pareto front")])
    return images(figure, NAME)


def _plain(name: str) -> str:
    return re.sub(r"[*`]", "", name)


def rows_block() -> str:
    """README's table."""
    rows = {row["key"]: row for row in table()["rows"]}
    lines = ["| after 100 steps | KV cache | held-out loss | pass key found, 512 / 4,096 tokens |", "|---|--:|--:|--:|"]
    for key in SHOWN:
        row = rows[key]
        short, long = row["pass_key"]
        lines.append(
            f"| {_plain(row['row'])} | {row['cache']} % | {row['held_out']['value']:.3f} | {short} / {long} % |"
        )
    return "\n".join(lines)


def quickstart_block() -> str:
    """What README shows of the quickstart's last lines: the held-out row and the table."""
    text = RECORDED.read_text(encoding="utf-8")
    row = re.search(r"^row \d+:.*?\n(?=\n|\S)", text, re.MULTILINE | re.DOTALL)
    report = re.search(r"^report\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert row is not None, f"{RECORDED} has no held-out row"
    assert report is not None, f"{RECORDED} has no report"
    return f"```text\n{report[1]}\n\n{row[0].rstrip()}\n```"


def recorded(log: str) -> str:
    """A log of the quickstart without its progress."""
    lines = [INTERPRETER.sub("python", line).rstrip() for line in log.splitlines() if not PROGRESS.search(line)]
    return "\n".join(lines).strip() + "\n"


def with_blocks(text: str) -> str:
    """README with its blocks made anew."""
    for name, block in (("table", rows_block()), ("quickstart", quickstart_block())):
        marks = f"<!-- {name}: made by benchmarks/readme.py -->\n", f"\n<!-- {name}: end -->"
        before, found, rest = text.partition(marks[0])
        _, end, after = rest.partition(marks[1])
        assert found, f"README.md has no {marks[0]}"
        assert end, f"README.md has no {marks[1]}"
        text = before + found + block + end + after
    return text


def main() -> None:
    """Write README's blocks and its figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, metavar="LOG", help="what `COLUMNS=80 make quickstart` printed")
    arguments = parser.parse_args()
    if arguments.quickstart is not None:
        RECORDED.write_text(recorded(arguments.quickstart.read_text(encoding="utf-8")), encoding="utf-8")
    for name, content in draw().items():
        if name.endswith(".png"):
            (FIGURE / name).write_bytes(content)
    README.write_text(with_blocks(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
