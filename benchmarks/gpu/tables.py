"""The rows of a check as tables: for the terminal at its end, and for docs/results/gpu.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
GIB = 2**30
NAMES = {
    "original": "original",
    "no_compensation": "unified, no W_c",
    "initial": "after initialisation",
    "stage1": "after stage 1",
    "stage2": "after stage 2",
}
STOCK = "stock"
NOTHING = "-"


@dataclass(frozen=True)
class ResultTable:
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def check_tables(content: Row) -> list[ResultTable]:
    """Every table that the rows of a file fill, in the order of the parts."""
    makers: list[Callable[[list[Row]], ResultTable | None]] = [
        test_table,
        agreement_table,
        prefill_kernel_table,
        crossover_table,
        decode_kernel_table,
        first_token_table,
        step_table,
        capacity_table,
        milestone_table,
        training_table,
        shard_table,
        failure_table,
    ]
    tables = [part_table(content["parts"]), *(maker(content["rows"]) for maker in makers)]
    return [table for table in tables if table is not None and table.rows]


def markdown(content: dict[str, Any]) -> str:
    """Where it was measured, and every table."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items() if version)
    commit = (content["commit"] or "unknown")[:7] + (" and changes" if content["changed_since"] else "")
    memory = f" ({content['memory_gib']} GiB)" if content["memory_gib"] else ""
    lines = [f"{content['card'] or 'CPU'}{memory}, {content['date']}, commit {commit}; {versions}.", ""]
    for table in check_tables(content):
        lines += [f"{table.title}:", "", _markdown_line(table.columns), "|---" * len(table.columns) + "|"]
        lines += [*(_markdown_line(row) for row in table.rows), ""]
    return "\n".join(lines)


def part_table(parts: Row) -> ResultTable:
    """How each part ended."""
    rows = [(name, p["status"], f"{p['seconds']:.0f} s", p.get("why", "")) for name, p in parts.items()]
    return ResultTable("Parts", ("part", "ended", "time", "why"), rows)


def test_table(rows: list[Row]) -> ResultTable | None:
    """Counts of the tests by file."""
    cells = [
        (row["file"], *(str(row["outcomes"][key]) for key in ("passed", "failed", "skipped")), f"{row['seconds']:.1f}")
        for row in _of(rows, "tests")
    ]
    return ResultTable("Tests", ("file", "passed", "failed", "skipped", "seconds"), cells)


def agreement_table(rows: list[Row]) -> ResultTable | None:
    """Of small models: how far ways to compute the same logits differ, and whether a cache changes tokens."""
    found = [row for row in _of(rows, "correct") if "differences" in row]
    ways = _in_order(way for row in found for way in row["differences"])
    cells = [
        (
            f"{row['model']}, {row['dtype'].removeprefix('torch.')}",
            *(f"{row['differences'][way]:.1e}" if way in row["differences"] else NOTHING for way in ways),
            "yes" if row.get("cached_equals", row.get("cached_equals_uncached")) else "no",
        )
        for row in found
    ]
    return ResultTable("Largest difference of logits", ("model", *ways, "cached == uncached"), cells)


def prefill_kernel_table(rows: list[Row]) -> ResultTable | None:
    """Milliseconds of one layer's prompt."""
    columns = ("head, length, tiles", "sdpa ms", "flash ms", "FlashAttention ms", "source (bound) ms")
    cells = [
        (
            f"{row['head_dim']}, {row['length']:,}, {row['tile_dtype']}",
            *(_ms(row[key]) for key in ("sdpa_ms", "flash_ms", "flash_package_ms")),
            f"{_ms(row['source_ms'])} ({_ms(row['source_bound_ms'])})",
            f"{_ms(row['reader_ms'])} ({_ms(row['reader_bound_ms'])})",
            f"{row['reader_over_flash']:.2f}",
            f"{row['map_bytes'] / GIB:.2f}",
        )
        for row in _measured(rows, "prefill kernels")
    ]
    title = "Kernels of a prompt, batch 1, 32 heads over 8"
    return ResultTable(title, (*columns, "reader (bound) ms", "reader / flash", "map GiB"), cells)


def crossover_table(rows: list[Row]) -> ResultTable | None:
    """Where a map that is kept beats one that is computed again."""
    cells = [
        (
            f"{row['head_dim']}, {row['length']:,}, {row['tile_dtype']}",
            _ms(row["kept_ms"]),
            _ms(row["replayed_ms"]),
            row["faster"],
            str(row["least_readers"] or "never"),
        )
        for row in _of(rows, "crossover")
    ]
    columns = ("head, length, tiles", "kept ms", "replayed ms", "faster", "from so many readers")
    return ResultTable("A Superblock of four layers: its map kept, or computed again", columns, cells)


def decode_kernel_table(rows: list[Row]) -> ResultTable | None:
    """Milliseconds of one layer's step."""
    cells = [
        (
            f"{row['head_dim']}, {row['batch']} x {row['length']:,}",
            *(_ms(row[key]) for key in ("sdpa_ms", "flash_package_ms")),
            f"{_ms(row['source_ms'])} ({_ms(row['source_bound_ms'])})",
            f"{_ms(row['reader_ms'])} ({_ms(row['reader_bound_ms'])})",
        )
        for row in _measured(rows, "decode kernels")
    ]
    columns = ("head, batch x cache", "sdpa ms", "FlashAttention ms", "source (bound) ms", "reader (bound) ms")
    return ResultTable("Kernels of one token, 32 heads over 8", columns, cells)


def first_token_table(rows: list[Row]) -> ResultTable | None:
    """Time to first token by length, over the stock model's, and the peak of memory at the longest."""
    found = _of(rows, "ttft")
    lengths = sorted({row["tokens"] for row in found})
    if not lengths:
        return None
    by_case = {(row["model"], row["tokens"]): row for row in found}
    compared = lengths[-2:]
    cells = []
    for model in _in_order(row["model"] for row in found):
        of_model = [by_case.get((model, length), {}) for length in lengths]
        ratios = [_ratio(by_case.get((model, n)), by_case.get((STOCK, n)), "seconds") for n in compared]
        longest = next((row for row in reversed(of_model) if row.get("peak_gib") is not None), {})
        estimate = sum(longest.get(f"predicted_{part}_bytes", 0) for part in ("weight", "kv")) / GIB
        cells.append(
            (
                model,
                *(_spread(row) for row in of_model),
                ", ".join(ratios),
                f"{longest['peak_gib']:.1f}" if longest else NOTHING,
                f"{estimate:.1f}" if estimate else NOTHING,
            )
        )
    columns = ["model", *(f"{n:,}" for n in lengths), f"/ {STOCK} at " + ", ".join(f"{n:,}" for n in compared)]
    title = "TTFT in ms, batch 1 (median of 3 after one, and range)"
    peak = ("peak GiB, longest that fits", "weights + cache by plan")
    return ResultTable(title, (*columns, *peak), cells)


def step_table(rows: list[Row]) -> ResultTable | None:
    """Time per token, busy and wall, with a growing cache and with a compiled step over a static one."""
    found = [row for row in _measured(rows, "tpot") if row.get("cudnn") is not True]
    kinds = _in_order((row["batch"], row["context"], row.get("cache", "dynamic")) for row in found)
    by_case = {(row["model"], row["batch"], row["context"], row.get("cache", "dynamic")): row for row in found}
    cells = []
    for model in _in_order(row["model"] for row in found):
        of_model = [by_case.get((model, *kind)) for kind in kinds]
        largest = [row for row in of_model if row is not None and row.get("cache", "dynamic") == "dynamic"]
        cache = f"{max(row['kv_gib'] for row in largest):.1f}" if largest else NOTHING
        cells.append((model, *(_busy_and_wall(row) for row in of_model), cache))
    columns = ["model", *(f"{batch} x {context:,}, {cache}" for batch, context, cache in kinds), "largest cache, GiB"]
    return ResultTable("One token: card busy, wall ms (median, without cuDNN's attention)", columns, cells)


def capacity_table(rows: list[Row]) -> ResultTable | None:
    """Sequences that fit beside what the plan predicts of the memory that weights leave."""
    found = _measured(rows, "capacity")
    stock = {row["cache"]: row for row in found if row["model"] == STOCK}
    cells = [
        (
            f"{row['model']}, {row['cache']}",
            f"{row['context']:,}",
            str(row["sequences"]),
            str(row["predicted"]),
            _ratio(row, stock.get(row["cache"]), "sequences"),
        )
        for row in found
    ]
    return ResultTable("Sequences that fit", ("model, cache", "tokens", "fit", "by the plan", "/ stock"), cells)


def milestone_table(rows: list[Row]) -> ResultTable | None:
    """Held-out losses of a fit beside a CPU's."""
    cells = [
        (NAMES[row["name"]], f"{row['loss']:.3f}", NOTHING if row["cpu_loss"] is None else f"{row['cpu_loss']:.3f}")
        for row in _of(rows, "milestone")
    ]
    experiment = next((row["experiment"] for row in _of(rows, "milestone")), "")
    return ResultTable(f"Held-out response loss of a fit, {experiment}", ("model", "here", "on a CPU"), cells)


def training_table(rows: list[Row]) -> ResultTable | None:
    """Speed and memory of training the 8B shape."""
    cells = [
        (
            f"{row['case']}, {row['batch']} x {row['tokens']:,}",
            f"{row['tokens_per_second']:,.0f}",
            NOTHING if row["mfu"] is None else f"{row['mfu']:.1%}",
            NOTHING if row["peak_bytes"] is None else f"{row['peak_bytes'] / GIB:.1f}",
            f"{row['estimated_bytes'] / GIB:.1f}",
        )
        for row in _measured(rows, "training")
    ]
    columns = ("stage, micro batch", "tokens/s", "MFU", "peak GiB", "by the plan")
    return ResultTable("Training of the 8B shape, bfloat16, activations recomputed", columns, cells)


def shard_table(rows: list[Row]) -> ResultTable | None:
    """FSDP2 on one rank beside no shards."""
    found = [row for row in _measured(rows, "fsdp") if "difference" in row]
    cells = [(f"stage {row['stage']}", row["backend"], f"{row['difference']:.1e}") for row in found]
    return ResultTable("FSDP2 on one rank", ("stage", "backend", "largest difference of losses"), cells)


def failure_table(rows: list[Row]) -> ResultTable | None:
    """What was not measured, and why."""
    shown = (
        "model",
        "batch",
        "context",
        "tokens",
        "head_dim",
        "length",
        "tile_dtype",
        "cache",
        "case",
        "stage",
        "test",
    )
    cells = []
    for row in rows:
        reason = row.get("does_not_fit") or row.get("failed") or row.get("message")
        if reason:
            case = ", ".join(str(row[key]) for key in shown if key in row)
            cells.append((f"{row['what']}: {case}", " ".join(str(reason).split())[:120].strip().replace("|", "/")))
    return ResultTable("Not measured", ("case", "why"), cells)


def _of(rows: list[Row], what: str) -> list[Row]:
    return [row for row in rows if row.get("what") == what]


def _measured(rows: list[Row], what: str) -> list[Row]:
    return [row for row in _of(rows, what) if "failed" not in row and "does_not_fit" not in row]


def _in_order(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _ms(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _spread(row: Row) -> str:
    if "does_not_fit" in row:
        return "does not fit"
    if "seconds" not in row:
        return NOTHING
    low, high = min(row["all"][1:]), max(row["all"][1:])
    return f"{_ms(1000 * row['seconds'])} ({_ms(1000 * low)}-{_ms(1000 * high)})"


def _ratio(row: Row | None, base: Row | None, key: str) -> str:
    if row is None or base is None or not row.get(key) or not base.get(key):
        return NOTHING
    return f"{row[key] / base[key]:.2f}"


def _busy_and_wall(row: Row | None) -> str:
    if row is None:
        return NOTHING
    return f"{_ms(row.get('gpu_ms'))}, {_ms(row['ms'])}"


def _markdown_line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
