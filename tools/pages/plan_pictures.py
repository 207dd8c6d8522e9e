"""A whole plan: a column per layer, the bottom layer at the left; what each computes, reads and caches."""

from __future__ import annotations

from tools.pages.svg import INK, PALE, PAPER, Canvas
from uniattn_pl.display.figure_style import PALETTE
from uniattn_pl.plan import LayerPlan, LayerRow, ModelShape
from uniattn_pl.plan.roles import KEY_VALUE, MAP

CELL, GAP, LEFT, LINKS = 20, 3, 96, 34
OWN = "#c9d3df"
ROWS = ("attention map", "keys cached", "values cached", "W_c")


def plan_picture(plan: LayerPlan, shape: ModelShape, title: str) -> str:
    """What a plan makes of every layer of a model.

    Full cells are the layer's own; a coloured one with a number is read from the layer of that number; an empty one is
    not there. A cell that is filled in part has fewer heads or tokens. Lines above lead from a source to its readers.
    """
    canvas = Canvas(LEFT + (CELL + GAP) * len(plan.rows) + 6, LINKS + (CELL + GAP) * (len(ROWS) + 1) + 6, title)
    for number, name in enumerate(ROWS):
        canvas.text(LEFT - 8, _y(number) + CELL / 2, name, size=11, anchor="end")
    canvas.text(LEFT - 8, _y(len(ROWS)) + CELL / 2, "layer", size=11, anchor="end")
    for row in plan.rows:
        _draw_column(canvas, row, shape)
    for row in plan.rows:
        readers = [reader.index for reader in plan.readers(row.index)]
        if readers:
            _draw_links(canvas, row.index, readers, PALETTE[plan.rows[readers[0]].traits.mechanism])
    return canvas.render()


def _x(layer: int) -> float:
    return LEFT + (CELL + GAP) * layer


def _y(number: int) -> float:
    return LINKS + (CELL + GAP) * number


def _draw_column(canvas: Canvas, row: LayerRow, shape: ModelShape) -> None:
    role, x = row.traits, _x(row.index)
    color = PALETTE[role.mechanism] if row.operated else OWN
    _cell(canvas, x, 0, OWN if role.products == 2 else "", share=0.5 if row.window else 1)
    if role.reads == MAP:
        _cell(canvas, x, 0, color, str(row.source))
    share = 1.0
    if row.kv_heads is not None:
        share = row.kv_heads / shape.layers[row.index].heads.groups
    if row.window is not None:
        share = 0.3
    for number, cached in ((1, row.caches_keys), (2, row.caches_values)):
        if role.reads == KEY_VALUE:
            _cell(canvas, x, number, PAPER, str(row.source), border=color)
        else:
            _cell(canvas, x, number, (color if share < 1 else OWN) if cached else "", share=share)
    _cell(canvas, x, 3, PALETTE[role.mechanism] if row.compensated else "", radius=True)
    if not role.feed_forward:
        canvas.line([(x, _y(0)), (x + CELL, _y(len(ROWS)) - GAP)], color=color, width=2)
        canvas.line([(x + CELL, _y(0)), (x, _y(len(ROWS)) - GAP)], color=color, width=2)
    canvas.text(x + CELL / 2, _y(len(ROWS)) + CELL / 2, str(row.index), size=10)


def _cell(
    canvas: Canvas,
    x: float,
    number: int,
    fill: str,
    text: str = "",
    *,
    share: float = 1,
    border: str = "",
    radius: bool = False,
) -> None:
    """One cell; `share` of it is filled, from below."""
    y = _y(number)
    if radius:
        if fill:
            canvas.circle(x + CELL / 2, y + CELL / 2, 5, fill=fill, stroke=fill)
        return
    there = bool(fill)
    canvas.box(x, y, CELL, CELL, stroke=border or (INK if there else PALE), dashed=not there or bool(border))
    if there:
        canvas.box(x, y + CELL * (1 - share), CELL, CELL * share, fill=fill, stroke=border or INK, dashed=bool(border))
    if text:
        canvas.text(x + CELL / 2, y + CELL / 2, text, size=10, color=border or PAPER, bold=True)


def _draw_links(canvas: Canvas, source: int, readers: list[int], color: str) -> None:
    """From a source up, along its readers, and down to each."""
    top, bottom = LINKS - 20, LINKS - 3
    middle = CELL / 2
    ends = [_x(source) + middle, *(_x(reader) + middle for reader in readers)]
    canvas.line([(ends[0], bottom), (ends[0], top), (max(ends), top)], color=color, width=2)
    for end in ends[1:]:
        canvas.line([(end, top), (end, bottom)], color=color, width=2, arrow=True)
