"""Each role as a layer: which weights it keeps, what it computes, reads and caches. Drawn from a plan's rows alone.

What a layer does not have is pale and dashed; what it reads from another layer has the colour of its mechanism.
"""

from __future__ import annotations

from tools.pages.svg import INK, PALE, PAPER, Canvas
from uniattn_pl.display.figure_style import PALETTE
from uniattn_pl.plan import LayerPlan, LayerRow
from uniattn_pl.plan.roles import KEY, KEY_VALUE, MAP, OUTPUT, QUERY, UNMODIFIED, VALUE

WIDTH, HEIGHT = 710, 216
STREAM, NORM, WEIGHTS, MAPS, APPLY, OUT, SUM, CACHE = 60, 100, 180, 275, 390, 475, 560, 640
BACK, QUERIES, KEYS, VALUES, COMPENSATION = 62, 96, 126, 156, 190  # heights in a layer's strip
PROJECTIONS = {QUERY: ("W_q", QUERIES), KEY: ("W_k", KEYS), VALUE: ("W_v", VALUES)}
OWN, TRAINED, CACHED, SEEN = "#eef2f7", "#ffe9a8", "#d9e6d4", "#9db4cf"


def role_picture(plan: LayerPlan, title: str, trained: frozenset[str] = frozenset()) -> str:
    """The layers of a small plan, bottom layer at the bottom.

    Args:
        trained: of `W_c`, `W_o`, ..., `FFN` those to mark as training.
    """
    canvas = Canvas(WIDTH, HEIGHT * len(plan.rows) + 24, title)
    tops = {row.index: HEIGHT * (len(plan.rows) - 1 - row.index) for row in plan.rows}
    canvas.line([(STREAM, canvas.height - 4), (STREAM, 4)], width=2.2, arrow=True)
    for row in plan.rows:
        _draw_layer(canvas, row, tops[row.index], trained)
    for row in plan.rows:
        if row.source is not None:
            _draw_link(canvas, row, tops[row.index], tops[row.source])
    return canvas.render()


def _draw_layer(canvas: Canvas, row: LayerRow, top: float, trained: frozenset[str]) -> None:
    role = row.traits
    color = INK if role.mechanism == UNMODIFIED else PALETTE[role.mechanism]
    canvas.text(
        STREAM + 36, top + 24, f"layer {row.index}: {row.role}", size=15, bold=True, color=color, anchor="start"
    )
    canvas.text(STREAM + 36, top + 43, role.summary, size=11, anchor="start")
    _block(canvas, STREAM - 26, top + 14, 52, 24, "FFN", role.feed_forward, "FFN" in trained)
    own_map = role.products == 2
    reads = row.reads_stream or row.compensated
    _wire(canvas, [(STREAM, top + 205), (STREAM + 24, top + 205), (STREAM + 24, top + KEYS), (NORM, top + KEYS)], reads)
    _block(canvas, NORM, top + KEYS - 12, 52, 24, "norm", row.reads_stream, False)
    for projection, (name, height) in PROJECTIONS.items():
        kept = projection in role.projections
        bend = NORM + 62
        _wire(
            canvas, [(NORM + 52, top + KEYS), (bend, top + KEYS), (bend, top + height), (WEIGHTS, top + height)], kept
        )
        label = f"{name}, {row.kv_heads} heads" if row.kv_heads and projection != QUERY else name
        _block(canvas, WEIGHTS, top + height - 11, 76, 22, label, kept, name in trained)
        if projection != VALUE:
            _wire(canvas, [(WEIGHTS + 76, top + height), (MAPS, top + height)], kept)
    _wire(canvas, [(WEIGHTS + 76, top + VALUES), (APPLY, top + VALUES)], VALUE in role.projections)
    _draw_map(canvas, row, top, own_map)
    _wire(canvas, [(MAPS + 62, top + 111), (APPLY + 24, top + 111), (APPLY + 24, top + VALUES - 13)], role.products > 0)
    _block(canvas, APPLY, top + VALUES - 13, 48, 26, "A V", role.products > 0, False)
    _wire(canvas, [(APPLY + 48, top + VALUES), (OUT, top + VALUES)], OUTPUT in role.projections)
    _block(canvas, OUT, top + VALUES - 13, 48, 26, "W_o", OUTPUT in role.projections, "W_o" in trained)
    adds = role.products > 0
    _wire(canvas, [(OUT + 48, top + VALUES), (SUM, top + VALUES)], adds)
    _draw_compensation(canvas, row, top, trained)
    lowest = COMPENSATION if row.compensated else VALUES
    back = [(SUM, top + lowest), (SUM, top + BACK), (STREAM + 8, top + BACK)]
    _wire(canvas, back, adds or row.compensated, arrow=True)
    if adds or row.compensated:
        canvas.circle(STREAM, top + BACK, 8)
        canvas.text(STREAM, top + BACK, "+", size=14)
    for height, name, cached in ((KEYS, "K", row.caches_keys), (VALUES, "V", row.caches_values)):
        _block(canvas, CACHE, top + height - 12, 44, 24, name, cached, False, fill=CACHED)
    canvas.text(CACHE + 22, top + QUERIES + 2, "cache", size=11)


def _draw_map(canvas: Canvas, row: LayerRow, top: float, own: bool) -> None:
    """The attention map as a matrix: below its diagonal, or what a window leaves of that."""
    x, y, size = MAPS, top + QUERIES - 16, 62
    canvas.box(x, y, size, size, stroke=INK if own else PALE, dashed=not own)
    shade = PALETTE[row.traits.mechanism] if row.traits.reads == MAP else INK
    if not row.traits.products:
        return
    if row.window is None:
        triangle = [(x + 4, y + 4), (x + 4, y + size - 4), (x + size - 4, y + size - 4)]
        canvas.polygon(triangle, SEEN if own else shade)
    else:
        canvas.polygon([(x + 4, y + 4), (x + 4, y + size - 4), (x + 10, y + size - 4), (x + 10, y + 10)], SEEN)
        end = x + size - 4
        band = [(x + 10, y + 10), (x + 10, y + 26), (end - 16, y + size - 4), (end, y + size - 4)]
        canvas.polygon(band, SEEN)
    canvas.text(x + 20, y + size - 16, "A", size=14, color=PAPER, bold=True)


def _draw_compensation(canvas: Canvas, row: LayerRow, top: float, trained: frozenset[str]) -> None:
    if not row.compensated:
        return
    start = NORM + 26 if row.reads_stream else STREAM + 24
    from_height = top + KEYS + 12 if row.reads_stream else top + 205
    _wire(canvas, [(start, from_height), (start, top + COMPENSATION), (APPLY, top + COMPENSATION)], True)
    _block(canvas, APPLY, top + COMPENSATION - 12, 48, 24, "W_c", True, "W_c" in trained)
    _wire(canvas, [(APPLY + 48, top + COMPENSATION), (SUM, top + COMPENSATION)], True)


def _draw_link(canvas: Canvas, row: LayerRow, top: float, source_top: float) -> None:
    """What a reader takes from its source, at the place where its own would be."""
    color = PALETTE[row.traits.mechanism]
    if row.traits.reads == MAP:
        x = MAPS + 31
        canvas.line([(x, source_top + QUERIES - 16), (x, top + QUERIES + 46)], color=color, width=3, arrow=True)
    if row.traits.reads == KEY_VALUE:
        for x, height, end in ((WEIGHTS + 82, KEYS, MAPS), (WEIGHTS + 88, VALUES, APPLY)):
            start, arrival = source_top + height, top + height
            points = [(WEIGHTS + 76, start), (x, start), (x, arrival), (end, arrival)]
            canvas.line(points, color=color, width=3, arrow=True)


def _block(
    canvas: Canvas,
    x: float,
    y: float,
    width: float,
    height: float,
    label: str,
    there: bool,
    trained: bool,
    fill: str = OWN,
) -> None:
    shade = TRAINED if trained else fill
    canvas.box(x, y, width, height, fill=shade if there else PAPER, stroke=INK if there else PALE, dashed=not there)
    canvas.text(x + width / 2, y + height / 2, label, size=11, color=INK if there else PALE)


def _wire(canvas: Canvas, points: list[tuple[float, float]], there: bool, *, arrow: bool = False) -> None:
    if there:
        canvas.line(points, arrow=arrow)
