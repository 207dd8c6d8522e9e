"""The table of a result file: quality, bytes and times of every method, each against stock transformers beside it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

NOT_MEASURED = "-"
BUSY = (
    "Losses, answers and bytes hold on a busy machine, too. Times hold only if nothing else ran: `times taken` says "
    "when, and the load of the machine before them."
)


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a table for every environment, the first row of each its own stock transformers."""
    lines = []
    for environment, found in result["environments"].items():
        versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        lines += ["", f"### {environment}", "", f"{versions}{_taken(found)}", ""]
        lines += _one(found["methods"])
    return "\n".join([*lines, "", BUSY])


def _taken(found: Mapping[str, Any]) -> str:
    said = ""
    for part, taken in found.items():
        if part.endswith(" taken"):
            load = f"{taken['threads']} thread(s), load before {taken['load_before']:.1f} of {taken['cores']} cores"
            said += f"; {part} {taken['time']} on {taken['processor']}, {load}"
    rows = next(iter(found["methods"].values())).get("loss", {}).get("rows")
    return said + (f"; {rows} held-out rows" if rows else "")


def _one(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    first = next(iter(methods.values()))
    groups = list(first.get("retrieval", {}))
    lengths = list(first.get("times", {}))
    head = ["method"]
    head += ["cache", "held-out loss", "less stock"] if "loss" in first else []
    head += [group.replace("_", ", ") for group in groups]
    for length in lengths:
        head += [f"TTFT / stock, {length}", f"TPOT / stock, {length}", f"cache, {length}"]
    rows = [_row(name, method, first, groups, lengths) for name, method in methods.items()]
    marks = ["---", *["---:"] * (len(head) - 1)]
    notes = [f"- {name}: {method['note']}" for name, method in methods.items() if method.get("note")]
    return ["| " + " | ".join(cells) + " |" for cells in (head, marks, *rows)] + (["", *notes] if notes else [])


def _row(
    name: str, method: Mapping[str, Any], first: Mapping[str, Any], groups: list[str], lengths: list[str]
) -> list[str]:
    cells = [name]
    if "loss" in first and "loss" not in method:
        cells += 3 * [NOT_MEASURED]
    elif "loss" in first:
        loss, base = method["loss"], first["loss"]
        cells.append(f"{loss['bytes_per_prompt_token'] / base['bytes_per_prompt_token']:.1%}")
        cells.append(f"{loss['loss']:.3f}")
        apart = [own - other for own, other in zip(loss["by_row"], base["by_row"], strict=True)]
        error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
        cells.append("-" if method is first else f"{loss['loss'] - base['loss']:+.3f} ({error:.3f})")
    for group in groups:
        found = method.get("retrieval", {}).get(group)
        cells.append(f"{found['right']}/{found['trials']}" if found else NOT_MEASURED)
    for length in lengths:
        own, base = method.get("times", {}).get(length), first["times"][length]
        if own is None:
            cells += 3 * [NOT_MEASURED]
            continue
        for metric in ("ttft_s", "tpot_s"):
            cells.append(_times(own, base, metric, absolute=method is first))
        cells.append(f"{own[0]['held_bytes'] / base[0]['held_bytes']:.1%}")
    return cells


def _times(own: list[Mapping[str, float]], base: list[Mapping[str, float]], metric: str, *, absolute: bool) -> str:
    """Ratios round by round, median and extremes; of stock itself its own times."""
    if absolute:
        values, unit, form = [1e3 * sample[metric] for sample in own], " ms", ".0f"
    else:
        values = [one[metric] / other[metric] for one, other in zip(own, base, strict=True)]
        unit, form = "", ".2f"
    return f"{statistics.median(values):{form}}{unit} ({min(values):{form}} to {max(values):{form}})"
