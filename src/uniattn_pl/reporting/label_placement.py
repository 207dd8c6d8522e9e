"""Names beside the dots of a figure, where they cover neither each other nor a dot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

RADII = (7, 11, 17, 25, 35, 47, 60, 75, 95)  # points from the dot, tried in this order
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
NEAR = 11  # points; a label that is farther away needs a line to its dot
DOT = 5.0  # half the width of a dot with its margin, in points
MARGIN = 1.5  # around a label, in points
OUTSIDE = 10.0  # how much worse a pixel outside of the axes is than one over another label
ALIGNMENT = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}


@dataclass(frozen=True)
class Dot:
    """A dot in data coordinates, and its name."""

    x: float
    y: float
    name: str


@dataclass(frozen=True)
class Place:
    """Where a label may stand: its direction and distance from the dot, and the pixels it would cover."""

    right: int
    up: int
    radius: float
    box: Bbox


def place_labels(
    axes: Axes, dots: Sequence[Dot], *, front: Sequence[tuple[float, float]] = (), fontsize: float = 8
) -> None:
    """Write every name at the first place around its dot that is free, else at the one that covers least.

    The axes' limits and place must be final.

    Args:
        front: points that a line of steps joins, which no name is to lie on.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    frame, pixels = axes.get_window_extent(), figure.dpi / 72
    centres = [(float(x), float(y)) for x, y in axes.transData.transform([(dot.x, dot.y) for dot in dots])]
    half = DOT * pixels
    taken = [Bbox.from_bounds(x - half, y - half, 2 * half, 2 * half) for x, y in centres]
    taken += _steps([(float(x), float(y)) for x, y in axes.transData.transform(front)] if front else [], pixels)
    for dot, centre in zip(dots, centres, strict=True):
        places = _places(centre, _size(axes, dot.name, fontsize), pixels)
        best = min(places, key=lambda place: _covered(place.box, taken, frame))
        taken.append(best.box)
        axes.annotate(
            dot.name,
            (dot.x, dot.y),
            xytext=(best.right * best.radius, best.up * best.radius),
            textcoords="offset points",
            ha=ALIGNMENT[best.right][0],
            va=ALIGNMENT[best.up][1],
            fontsize=fontsize,
            arrowprops={"arrowstyle": "-", "color": "#8a8a8a", "linewidth": 0.6} if best.radius > NEAR else None,
        )


def _steps(corners: Sequence[tuple[float, float]], width: float) -> list[Bbox]:
    """What a line of steps covers: to each point along the height of the one before it, then up or down."""
    from matplotlib.transforms import Bbox

    boxes = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        boxes.append(Bbox([(x0, y0 - width), (x1, y0 + width)]))
        boxes.append(Bbox([(x1 - width, min(y0, y1)), (x1 + width, max(y0, y1))]))
    return boxes


def _size(axes: Axes, text: str, fontsize: float) -> tuple[float, float]:
    """Width and height of a text in pixels."""
    probe = axes.text(0, 0, text, fontsize=fontsize)
    box = probe.get_window_extent()
    probe.remove()
    return box.width, box.height


def _places(centre: tuple[float, float], size: tuple[float, float], pixels: float) -> Iterator[Place]:
    from matplotlib.transforms import Bbox

    (width, height), margin = size, MARGIN * pixels
    for radius in RADII:
        for right, up in DIRECTIONS:
            left_edge = centre[0] + right * radius * pixels + {1: 0.0, 0: -width / 2, -1: -width}[right]
            bottom_edge = centre[1] + up * radius * pixels + {1: 0.0, 0: -height / 2, -1: -height}[up]
            box = Bbox.from_bounds(left_edge - margin, bottom_edge - margin, width + 2 * margin, height + 2 * margin)
            yield Place(right, up, radius, box)


def _covered(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    """Pixels of a label that lie over others, or outside of the axes, which count `OUTSIDE` times."""
    outside = box.width * box.height - _overlap(box, frame)
    return round(sum(_overlap(box, other) for other in taken) + OUTSIDE * outside, 3)


def _overlap(one: Bbox, other: Bbox) -> float:
    from matplotlib.transforms import Bbox

    both = Bbox.intersection(one, other)
    return 0.0 if both is None else both.width * both.height
