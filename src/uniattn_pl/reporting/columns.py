"""The columns of a report: metrics, metrics at one step, means of other columns; and how their values are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniattn_pl.display.text_table import bytes_text
from uniattn_pl.tracking.fit_result import LABELS
from uniattn_pl.tracking.metric_names import FINAL_LOSS, RETAIN_RATE

TTFT = "cost/ttft_s"
COST = "cost/"
EVAL = "eval/"
BOUNDS = ("_low", "_high")  # behind a metric's name: its 95 % interval
_DETAILS = (*BOUNDS, "_stderr")
_ACCURACIES = ("acc", "exact_match", "answer_accuracy", "found", "f1")


@dataclass(frozen=True)
class Unit:
    """How values of one kind are written and compared.

    Attributes:
        name: on an axis, "" for none.
        scale: from the logged value to the axis.
        better: 1 when more is better, -1 when less is, 0 when neither is.
        write: a value as text; the second argument is the value whose decimals it takes.
    """

    name: str
    scale: float
    better: int
    write: Callable[[float, float], str]


def _significant(value: float, like: float) -> str:
    """Three significant digits of `like`, without an exponent."""
    decimals = 2 - math.floor(math.log10(abs(like))) if like and math.isfinite(like) else 2
    return f"{value:.{max(0, decimals)}f}"


ACCURACY = Unit("%", 100, 1, lambda value, _: f"{100 * value:.1f}")
RETAINED = Unit("%", 100, -1, lambda value, _: f"{value:.1%}")
LOSS = Unit("", 1, -1, lambda value, _: f"{value:.3f}")
PERPLEXITY = Unit("", 1, -1, lambda value, _: f"{value:.2f}")
SECONDS = Unit("s", 1, -1, _significant)
BYTES = Unit("MiB", 2**-20, -1, lambda value, _: bytes_text(value))
PLAIN = Unit("", 1, 0, lambda value, _: f"{value:.4g}")


@dataclass(frozen=True)
class Column:
    """One column: the metric of a run, at its last or one given step, or the mean of other columns (`parts`)."""

    heading: str
    metric: str = ""
    step: int | None = None
    parts: tuple[Column, ...] = ()

    @property
    def unit(self) -> Unit:
        """The unit of the metric; of a mean, the one that all its parts have, else `PLAIN`."""
        if not self.parts:
            return _unit(self.metric)
        units = {id(part.unit): part.unit for part in self.parts}
        return next(iter(units.values())) if len(units) == 1 else PLAIN

    @property
    def is_quality(self) -> bool:
        """Whether the best value is marked: it says how good a model is, not what it costs."""
        if self.parts:
            return self.unit.better != 0 and all(part.is_quality for part in self.parts)
        return self.unit.better != 0 and not self.metric.startswith(COST)

    @property
    def measured(self) -> tuple[Column, ...]:
        """The columns with a metric that this one consists of."""
        return tuple(one for part in self.parts for one in part.measured) if self.parts else (self,)


def _unit(metric: str) -> Unit:
    last = metric.rpartition("/")[2]
    words = last.split("_")
    if last.startswith("kv_retain_rate"):
        return RETAINED
    if last.startswith(_ACCURACIES):
        return ACCURACY
    if "loss" in last or last == "bits_per_byte":
        return LOSS
    if "perplexity" in last:
        return PERPLEXITY
    if "per" not in words and ("s" in words or "seconds" in words):
        return SECONDS
    return BYTES if "per" not in words and "bytes" in words else PLAIN


def parse(definitions: Mapping[str, Any]) -> list[Column]:
    """The columns of a checked `report.columns`."""

    def column(heading: str) -> Column:
        source = definitions[heading]
        if isinstance(source, list):
            return Column(heading, parts=tuple(column(part) for part in source))
        metric, _, step = source.partition("@")
        return Column(heading, metric, int(step) if step else None)

    return [column(heading) for heading in definitions]


def default(logged: Iterable[str]) -> list[Column]:
    """The columns of a table whose config names none: costs, the last stage's loss, main figures of evaluations.

    Args:
        logged: the names of the metrics that the rows' runs have.
    """
    names = set(logged)
    known = (FINAL_LOSS, *(f"{name}/response_loss" for name in reversed(LABELS)))
    losses = [name for name in known if name in names]
    columns = [Column(heading, metric) for heading, metric in _COSTS.items() if metric in names]
    columns += [Column("Response loss", metric) for metric in losses[:1]]
    return columns + [Column(_heading(name, names), name) for name in sorted(names) if _is_main(name)]


_COSTS = {"TTFT (s)": TTFT, "KV cache": RETAIN_RATE}


def _is_main(metric: str) -> bool:
    _, _, variant = metric.partition("_h2o_")
    dropped = "_drop_" in metric.rpartition("/")[0]
    hidden = metric.endswith(_DETAILS) or "_depth_" in metric or variant or dropped
    return metric.startswith(EVAL) and not hidden


def _heading(metric: str, names: Sequence[str] | set[str]) -> str:
    """The task, with the metric's own name where the task has several."""
    task, _, name_in_task = metric.removeprefix(EVAL).rpartition("/")
    several = sum(name.startswith(f"{EVAL}{task}/") and _is_main(name) for name in names) > 1
    return f"{task} {name_in_task}" if several else task
