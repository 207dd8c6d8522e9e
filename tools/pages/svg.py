"""Just enough of SVG for diagrams that are text: the same plan gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

INK, PALE, PAPER = "#333333", "#c4c4c4", "#ffffff"
FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"
SUBSCRIPT = '<tspan dy="3" font-size="75%">{}</tspan><tspan dy="-3">&#8203;</tspan>'


class Canvas:
    """A picture of shapes in the order in which they are added."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = PAPER,
        stroke: str = INK,
        dashed: bool = False,
    ) -> None:
        """A rectangle with its upper left corner at (x, y)."""
        dash = ' stroke-dasharray="3 3"' * dashed
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}" '
            f'stroke="{stroke}"{dash}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 12,
        color: str = INK,
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        """One line of text whose middle is at the height y; the letter behind `_` is a subscript."""
        shown = re.sub(r"(?<=\bW)_(\w)", lambda found: SUBSCRIPT.format(found[1]), escape(text))
        weight = ' font-weight="bold"' * bold
        self.parts.append(
            f'<text x="{x:g}" y="{y + size * 0.36:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}"{weight}>'
            f"{shown}</text>"
        )

    def line(
        self,
        points: Sequence[tuple[float, float]],
        *,
        color: str = INK,
        width: float = 1.4,
        arrow: bool = False,
        dashed: bool = False,
    ) -> None:
        """A line through points, with a head at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="3 3"' * dashed
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width:g}"{dash}/>')
        if arrow:
            self._head(points[-2], points[-1], color)

    def polygon(self, points: Sequence[tuple[float, float]], fill: str) -> None:
        """A filled shape without a border."""
        self.parts.append(f'<polygon points="{" ".join(f"{x:g},{y:g}" for x, y in points)}" fill="{fill}"/>')

    def circle(self, x: float, y: float, radius: float, *, fill: str = PAPER, stroke: str = INK) -> None:
        """A circle around (x, y)."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{stroke}"/>')

    def _head(self, before: tuple[float, float], end: tuple[float, float], color: str) -> None:
        dx, dy = end[0] - before[0], end[1] - before[1]
        length = (dx * dx + dy * dy) ** 0.5
        dx, dy = 6 * dx / length, 6 * dy / length
        left = (end[0] - dx - dy / 2, end[1] - dy + dx / 2)
        right = (end[0] - dx + dy / 2, end[1] - dy - dx / 2)
        self.polygon([end, left, right], color)

    def render(self) -> str:
        """The file."""
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="{FONT}">\n'
            f"<title>{escape(self.title)}</title>\n"
            f'<rect width="{self.width}" height="{self.height}" fill="{PAPER}"/>\n{body}\n</svg>\n'
        )
