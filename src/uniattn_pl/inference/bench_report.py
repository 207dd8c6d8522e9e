"""A benchmark as people read it: tables of medians, spreads and ratios, and figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uniattn_pl.display.figure_style import mechanism_styles, new_axes, new_figure, set_legend, set_title, time_unit
from uniattn_pl.display.figure_words import words
from uniattn_pl.display.text_table import bytes_text
from uniattn_pl.inference.benchmark import BOUND, Measured, quartiles
from uniattn_pl.inference.roofline import Machine
from uniattn_pl.plan.roles import DROPPED, UNMODIFIED
from uniattn_pl.tracking.notes import measured_note
from uniattn_pl.tracking.tags import BASELINE, MACHINE, MODEL, STOCK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def columns(measured: Sequence[Measured]) -> tuple[str, ...]:
    """The headings of `rows`; times are in milliseconds where all of them are below a second."""
    rest = ("peak memory", "KV cache", "kept", "of peak FLOP/s", "of bandwidth")
    return ("model", "tokens", *_time_headings(measured), *rest)


def rows(measured: Sequence[Measured], machine: Machine) -> list[tuple[str, ...]]:
    """One row per model and length: median and quartiles, ratios to the stock model, fractions of the bounds."""
    scales = _scale(measured, "ttft_s"), _scale(measured, "tpot_s")
    return [_row(entry, _reference(entry, measured), machine, scales) for entry in measured]


def short_table(measured: Sequence[Measured]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows for a narrow terminal: medians, their ratios to the stock model, and the cache."""
    headings = ("model", "tokens", *_time_headings(measured), "KV cache", "kept")
    shown = []
    for entry in measured:
        reference = _reference(entry, measured)
        times = [
            text
            for metric in ("ttft_s", "tpot_s")
            for text in (
                f"{_scale(measured, metric) * entry.median(metric):.3g}",
                f"{statistics.median(entry.ratios(metric, reference)):.2f}",
            )
        ]
        cache = (bytes_text(entry.kv_bytes), f"{entry.kv_retain_rate:.1%}")
        shown.append((entry.label, str(entry.setting.length), *times, *cache))
    return headings, shown


def conclusion(measured: Sequence[Measured]) -> str | None:
    """What the experiment's own architecture does to the baseline at the longest prompt; None: it is not there."""
    own = [entry for entry in measured if not entry.label.startswith(STOCK) and entry.label != BASELINE]
    if not own:
        return None
    entry = max((one for one in own if one.label == own[0].label), key=lambda one: one.setting.length)
    other = next(one for one in measured if one.label == BASELINE and one.setting == entry.setting)
    said = [f"{name} {_change(entry.ratios(metric, other))}" for name, metric in WORDS.items()]
    return (
        f"{entry.label} beside the unmodified model (baseline) at {entry.setting.length:,} tokens: {', '.join(said)}; "
        f"it keeps {entry.kv_retain_rate:.1%} of the KV cache."
    )


WORDS = {"first token": "ttft_s", "further tokens": "tpot_s"}


def _change(ratios: Sequence[float]) -> str:
    """A ratio of times in words; where the quartiles of the rounds are on both sides of 1, none is claimed."""
    low, high = quartiles(ratios)
    if low <= 1 <= high:
        return "no difference that the rounds agree on"
    median = statistics.median(ratios)
    return f"{abs(1 - median):.0%} {'sooner' if median < 1 else 'later'}"


def _scale(measured: Sequence[Measured], metric: str) -> float:
    return time_unit(entry.median(metric) for entry in measured)[1]


def _time_headings(measured: Sequence[Measured]) -> list[str]:
    units = (time_unit(entry.median(metric) for entry in measured)[0] for metric in ("ttft_s", "tpot_s"))
    return [
        heading for name, unit in zip(("TTFT", "TPOT"), units, strict=True) for heading in (f"{name} {unit}", "/ stock")
    ]


def ratio_lines(measured: Sequence[Measured]) -> list[str]:
    """Each architecture against the baseline, and the first, the experiment's own, against every other one."""
    compared = [entry for entry in measured if not entry.label.startswith(STOCK) and entry.label != BASELINE]
    lines = []
    for entry in compared:
        is_own = entry.label == compared[0].label
        for other in measured:
            is_reference = other.label == BASELINE or (is_own and not other.label.startswith(STOCK))
            if is_reference and entry.label != other.label and entry.setting == other.setting:
                parts = [f"{name} {_ratio(entry.ratios(key, other))}" for name, key in METRICS]
                lines.append(f"{entry.label} / {other.label}, {entry.setting.length} tokens: {', '.join(parts)}")
    return lines


FEW_TICKS, ABOVE = 3, 1.05  # lengths that are each a tick; room over the highest time
METRICS = (("TTFT", "ttft_s"), ("TPOT", "tpot_s"))


def _reference(entry: Measured, measured: Sequence[Measured]) -> Measured:
    return next(other for other in measured if other.label == STOCK and other.setting == entry.setting)


def _row(entry: Measured, reference: Measured, machine: Machine, scales: tuple[float, float]) -> tuple[str, ...]:
    prefill = machine.bound_s(flops=entry.prefill_flops) / entry.median("ttft_s")
    decode = machine.bound_s(read_bytes=entry.decode_bytes) / entry.median("tpot_s")
    return (
        entry.label,
        str(entry.setting.length),
        _spread(entry, "ttft_s", scales[0]),
        _ratio(entry.ratios("ttft_s", reference)),
        _spread(entry, "tpot_s", scales[1]),
        _ratio(entry.ratios("tpot_s", reference)),
        "-" if entry.peak_memory_bytes is None else bytes_text(entry.peak_memory_bytes),
        bytes_text(entry.kv_bytes),
        f"{entry.kv_retain_rate:.1%}",
        f"{prefill:.0%}",
        f"{decode:.0%}",
    )


def _spread(entry: Measured, metric: str, scale: float) -> str:
    low, high = entry.quartiles(metric)
    return f"{scale * entry.median(metric):.3g} ({scale * low:.3g}-{scale * high:.3g})"


def _ratio(values: Sequence[float]) -> str:
    low, high = quartiles(values)
    return f"{statistics.median(values):.2f} ({low:.2f}-{high:.2f})"


def note(entries: Sequence[Measured], run_tags: Mapping[str, str]) -> str:
    """Describe the benchmark of one model on its MLflow page: medians at every length, and where the others are."""
    unit, scale = time_unit(entry.median("ttft_s") for entry in entries)
    table = [["prompt", f"time to first token ({unit})", "time per further token (ms)", "KV cache", "kept"]]
    for entry in entries:
        times = f"{scale * entry.median('ttft_s'):.3g}", f"{1000 * entry.median('tpot_s'):.3g}"
        setting = f"{entry.setting.length:,} x {entry.setting.batch_size}, {entry.setting.backend}"
        table.append([setting, *times, bytes_text(entry.kv_bytes), f"{entry.kv_retain_rate:.1%}"])
    what = f"Cost of {words(entries[0].label)} on {run_tags[MODEL]}, medians; {run_tags[MACHINE]}."
    return measured_note(what, table, "`bench/table.txt` among the artifacts has it beside the others.")


def time_figure(measured: Sequence[Measured], metric: str, mechanisms: Mapping[str, str], *about: str) -> Figure:
    """Median time over the length of the prompt, quartiles as bars, one line per model.

    Args:
        measured: at one batch size, with one kernel.
        metric: ttft_s or tpot_s.
        mechanisms: label -> what its plan saves by.
        about: what stands below the title: model, machine.
    """
    figure = new_figure()
    axes = new_axes(figure)
    styles = _styles(measured, mechanisms)
    unit, scale = time_unit(entry.median(metric) for entry in measured)
    for name, style in styles.items():
        entries = [entry for entry in measured if entry.label == name]
        medians = [scale * entry.median(metric) for entry in entries]
        bounds = [entry.quartiles(metric) for entry in entries]
        errors = [[m - scale * low for m, (low, _) in zip(medians, bounds, strict=True)]]
        errors.append([scale * high - m for m, (_, high) in zip(medians, bounds, strict=True)])
        axes.errorbar(
            [entry.setting.length for entry in entries],
            medians,
            yerr=errors,
            markersize=5,
            capsize=3,
            label=words(name),
            **style,
        )
    lengths = sorted({entry.setting.length for entry in measured})
    if len(lengths) <= FEW_TICKS:
        axes.set_xticks(lengths)
    _label(axes, "prompt (tokens)", f"{words(metric)} ({unit})")
    set_title(axes, f"{words(metric).capitalize()}, median and quartiles", *about)
    set_legend(figure, axes, list(axes.containers))
    return figure


def retain_figure(measured: Sequence[Measured], mechanisms: Mapping[str, str], *about: str) -> Figure:
    """TTFT against the fraction of the KV cache that is kept, at the longest prompt; quartiles as bars."""
    figure = new_figure()
    axes = new_axes(figure)
    longest = max(entry.setting.length for entry in measured)
    shown = [entry for entry in measured if entry.setting.length == longest]
    unit, scale = time_unit(entry.median("ttft_s") for entry in shown)
    for entry, style in zip(shown, _styles(shown, mechanisms).values(), strict=True):
        median, (low, high) = entry.median("ttft_s"), entry.quartiles("ttft_s")
        axes.errorbar(
            [100 * entry.kv_retain_rate],
            [scale * median],
            yerr=[[scale * (median - low)], [scale * (high - median)]],
            label=words(entry.label),
            **{**style, "linestyle": "none", "capsize": 3},
        )
    _label(axes, "KV cache kept (% of the unmodified model's)", f"{words('ttft_s')} ({unit})")
    set_title(axes, f"Prefill of {longest:,} tokens over the cache it leaves", *about)
    set_legend(figure, axes, list(axes.containers))
    return figure


def _styles(measured: Sequence[Measured], mechanisms: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Label -> how it is drawn; the stock kernels' line is dashed."""
    labels = dict.fromkeys(entry.label for entry in measured)
    bounds = {label: DROPPED for label in labels if label.startswith(BOUND)}
    styles = mechanism_styles({label: {**mechanisms, **bounds}.get(label, UNMODIFIED) for label in labels})
    return {label: {**styles[label], "linestyle": "--" if label.startswith(STOCK) else "-"} for label in labels}


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(0, axes.get_ylim()[1] * ABOVE)
