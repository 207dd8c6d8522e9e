"""How every figure of the project looks: size, titles, one colour per mechanism, axes, and the files it becomes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from uniattn_pl.plan.roles import DROPPED, MERGED_HEADS, MIXED, REUSED, SHARED_KV, UNMODIFIED, WINDOWED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, PALE = "#8a8a8a", "#c4c4c4"
PALETTE = {
    REUSED: "#1f5fa8",
    SHARED_KV: "#c8501e",
    DROPPED: "#8a5a44",
    WINDOWED: "#2f8f4e",
    MERGED_HEADS: "#7b4ba0",
    MIXED: "#b8860b",
    UNMODIFIED: GREY,
}
SERIES = ("#1f5fa8", "#c8501e", "#2f8f4e", "#7b4ba0", "#8a6d1d", "#4a4a4a")  # of lines that are no mechanisms
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FORMATS = ("png", "svg")
DPI = 150
BELOW_AXES, LABEL_LINE = 0.5, 0.17  # inches, room for the ticks and the name of the axis; for a further line of it
LEGEND_LETTERS = 80  # beside each other below a figure
PALEST = 0.5  # share of white in the last of many lines of one mechanism
SMOOTHED_SHARE = 15  # a smoothed curve averages over this part of its points


def new_figure(width: float = 7, height: float = 4) -> Figure:
    """An empty figure, in inches, at the size of the README's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)  # no display, and pyplot's state, which a user's notebook may use, is not touched
    return figure


def new_axes(figure: Figure, rows: int = 1, position: int = 1) -> Axes:
    """Axes with a pale grid and no frame above and to the right, one of `rows` below each other."""
    axes = figure.add_subplot(rows, 1, position)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return axes


def set_title(axes: Axes, title: str, *context: str) -> None:
    """A title at the left, and below it in small letters what the figure is of: model, rows, machine."""
    about = " · ".join(part for part in context if part)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=22 if about else 8)
    if about:
        axes.annotate(
            about, (0, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", fontsize=8, color="#5a5a5a"
        )


def set_legend(figure: Figure, axes: Axes, handles: Sequence[Any] | None = None, title: str | None = None) -> None:
    """A legend below the axes, where it hides no curve, in as many columns as there is room for; none for one line."""
    handles = axes.get_legend_handles_labels()[0] if handles is None else handles
    if len(handles) < 2:
        return
    longest = max(len(str(handle.get_label())) for handle in handles) + 6  # with the line and a gap
    below = BELOW_AXES + LABEL_LINE * axes.get_xlabel().count("\n")
    columns = max(1, min(len(handles), LEGEND_LETTERS // longest))
    axes.legend(
        handles=handles,
        title=title,
        loc="upper center",
        bbox_to_anchor=(0.5, -below / (axes.get_position().height * figure.get_size_inches()[1])),
        ncols=columns,
        frameon=False,
        fontsize=9,
    )


def label_layers(axes: Axes, *, y: bool = False) -> None:
    """Name an axis of layers, whose ticks are whole numbers; `y`: both axes."""
    axes.set_xlabel("layer (the first is 0)")
    whole_ticks(axes, y=y)
    if y:
        axes.set_ylabel("layer (the first is 0)")


def whole_ticks(axes: Axes, *, y: bool = False) -> None:
    """Ticks of counts, which are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if y:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def logarithmic(axes: Axes) -> None:
    """A logarithmic axis of values, with plain numbers at it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def time_unit(seconds: Iterable[float]) -> tuple[str, float]:
    """The unit of an axis of times, and how many of it a second has: ms where all are below a second."""
    return ("ms", 1000.0) if max(seconds, default=1.0) < 1 else ("s", 1.0)


def mechanism_styles(mechanisms: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each name by its mechanism; further names of one are paler, and have other markers.

    Args:
        mechanisms: name -> mechanism, of `PALETTE`.
    """
    styles: dict[str, dict[str, Any]] = {}
    for mechanism in dict.fromkeys(mechanisms.values()):
        names = [name for name, its in mechanisms.items() if its == mechanism]
        for number, name in zip(count(), names, strict=False):
            color = paler(PALETTE.get(mechanism, PALETTE[MIXED]), PALEST * number / max(1, len(names) - 1))
            styles[name] = {"color": color, "marker": MARKERS[number % len(MARKERS)]}
    return styles


def paler(color: str, share: float) -> str:
    """A colour mixed with this share of white."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = (part + (1 - part) * share for part in to_rgb(color))
    return to_hex((red, green, blue))


def smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A curve's running mean over a fifteenth of its points around each, fewer at its ends."""
    half = max(1, len(points) // (2 * SMOOTHED_SHARE))
    means = []
    for index, (step, _) in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)
        near = [value for _, value in points[index - reach : index + reach + 1]]
        means.append((step, sum(near) / len(near)))
    return means


def pareto_front(points: Sequence[tuple[float, float]], *, more_is_better: bool = False) -> list[tuple[float, float]]:
    """The points (cost, quality) that none beats in both, by ascending cost.

    Args:
        more_is_better: of the quality; the cost is always better when it is less.
    """
    sign = -1.0 if more_is_better else 1.0
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * y < sign * front[-1][1]:
            front.append((x, y))
    return front


def draw_front(
    axes: Axes, points: Sequence[tuple[float, float]], *, more_is_better: bool = False
) -> list[tuple[float, float]]:
    """Join the points that none beats in both by steps, the best quality that so much cost buys; returns them."""
    front = pareto_front(points, more_is_better=more_is_better)
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="post", color=PALE, linewidth=1.2, zorder=0, label="Pareto front")
    return front


def images(figure: Figure, name: str) -> dict[str, bytes]:
    """File name -> image: a PNG to be seen anywhere, an SVG for papers; the same figure gives the same bytes."""
    return {f"{name}.{kind}": _image(figure, kind) for kind in FORMATS}


def _image(figure: Figure, kind: str) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Software": None} if kind == "png" else {"Date": None}
    with rc_context({"svg.hashsalt": "uniattn_pl"}):
        figure.savefig(buffer, dpi=DPI, bbox_inches="tight", format=kind, metadata=metadata)
    return buffer.getvalue()
