"""Names beside the dots of a figure, where they cover neither each other nor a dot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

RADII = (7, 12, 20, 30, 42, 56)  # points from the dot, tried in this order
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
NEAR = 12  # points; a label that is farther away needs a line to its dot
DOT = 5.0  # half the width of a dot with its margin, in points
OUTSIDE = 10.0  # how much worse a pixel outside of the axes is than one over another label


@dataclass(frozen=True)
class Dot:
    """A dot in data coordinates, and its name."""

    x: float
    y: float
    name: str


def place_labels(axes: Axes, dots: Sequence[Dot]) -> None:
    """Write every name at the first place around its dot that is free, else at the one that covers least.

    The axes' limits must be final.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    frame, pixels = axes.get_window_extent(), figure.dpi / 72
    centres = axes.transData.transform([(dot.x, dot.y) for dot in dots])
    half = DOT * pixels
    taken = [Bbox.from_bounds(x - half, y - half, 2 * half, 2 * half) for x, y in centres]
    for dot in dots:
        best = min(_candidates(axes, dot), key=lambda candidate: _covered(candidate, taken, frame))
        for label in [label for label in axes.texts if label.get_gid() == "candidate" and label is not best]:
            label.remove()
        best.set_gid("")
        taken.append(best.get_window_extent())


def _candidates(axes: Axes, dot: Dot) -> Iterator[Annotation]:
    for radius in RADII:
        for right, up in DIRECTIONS:
            yield axes.annotate(
                dot.name,
                (dot.x, dot.y),
                xytext=(right * radius, up * radius),
                textcoords="offset points",
                ha={1: "left", 0: "center", -1: "right"}[right],
                va={1: "bottom", 0: "center", -1: "top"}[up],
                fontsize=8,
                gid="candidate",
                arrowprops={"arrowstyle": "-", "color": "#8a8a8a", "linewidth": 0.6} if radius > NEAR else None,
            )


def _covered(label: Annotation, taken: Sequence[Bbox], frame: Bbox) -> float:
    """Pixels that a label would share with others, or that would lie outside of the axes."""
    from matplotlib.text import Text

    box = Text.get_window_extent(label)
    inside = _shared(box, frame)
    return sum(_shared(box, other) for other in taken) + OUTSIDE * (box.width * box.height - inside)


def _shared(one: Bbox, other: Bbox) -> float:
    from matplotlib.transforms import Bbox

    both = Bbox.intersection(one, other)
    return 0.0 if both is None else both.width * both.height
