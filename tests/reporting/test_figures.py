"""Figures: what is drawn is in the picture, and what is not in the store is not."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.text import Text
from numpy.typing import NDArray
from tests.reporting.tracked import CLA, PLAIN, UNIATTN, Tracked

from uniattn_pl.display.figure_style import GREY, SERIES, new_figure
from uniattn_pl.reporting.label_placement import Dot, place_labels

CONFIG = """
evaluation: {tasks: [pubmedqa]}
sweep:
  points:
    Post-Train: {architecture: {name: baseline}}
    one: {architecture.num_superblocks: 1, evaluation.drop: [2, 4], evaluation.h2o: [0.5]}
    two: {architecture.num_superblocks: 2}
report:
  columns: {TTFT (s): cost/ttft_s, KV cache: cost/kv_retain_rate, PubMedQA: eval/pubmedqa/acc}
"""
LEFT, RIGHT = SERIES[:2]


@pytest.fixture
def swept(tracked: Tracked) -> Tracked:
    tracked.config(CONFIG)
    parent = tracked.run("sweep", "table", {})
    variants = {f"eval/pubmedqa_{name}/acc": 0.5 for name in ("drop_2", "drop_4", "h2o_0.5")}
    tracked.fit("Post-Train", "baseline", PLAIN, 1.0, {"eval/pubmedqa/acc": 0.8}, parent=parent)
    tracked.fit("one", "uniattn", UNIATTN, 0.9, {"eval/pubmedqa/acc": 0.7, **variants}, parent=parent)
    tracked.fit("two", "uniattn", CLA, 0.8, {"eval/pubmedqa/acc": 0.6}, parent=parent)
    for plan, seconds in ((PLAIN, 3.0), (UNIATTN, 2.0), (CLA, 1.0)):
        tracked.bench("any", {64: seconds}, plan=plan)
    return tracked


def picture(tracked: Tracked, figure: str) -> NDArray[np.float32]:
    """The pixels of a figure."""
    assert tracked.report(f"report.figures={{it: {figure}}}") == 0
    assert "![it](it.png)" in tracked.markdown
    pixels: NDArray[np.float32] = imread(io.BytesIO(tracked.file("it.png")))[..., :3]
    return pixels


def drawn(pixels: NDArray[np.float32], color: str) -> int:
    """How many pixels have a colour."""
    return int((np.abs(pixels - np.array(to_rgb(color))).max(axis=-1) < 0.02).sum())


@pytest.mark.parametrize("x", ["architecture.num_superblocks", "drop", "h2o"])
def test_curves_over_a_setting_or_a_variant_have_an_axis_per_unit(swept: Tracked, x: str) -> None:
    pixels = picture(swept, f"{{x: {x}, y: [PubMedQA, TTFT (s)]}}")
    assert min(pixels.shape[:2]) > 500
    assert drawn(pixels, LEFT) > 1000  # a line, the name and the numbers of its axis
    assert drawn(pixels, RIGHT) > 200  # over drop a single dot: the variants have no benchmark
    assert drawn(picture(swept, f"{{x: {x}, y: [PubMedQA]}}"), RIGHT) == 0


def test_rows_over_a_column_are_dots_and_the_unmodified_ones_are_hollow(swept: Tracked) -> None:
    filled = drawn(picture(swept, "{x: KV cache, y: [PubMedQA]}"), LEFT)
    assert filled > 3 * 100  # one, two, and the variant of one that has a rate
    assert drawn(picture(swept, "{x: KV cache, y: [PubMedQA, TTFT (s)]}"), LEFT) > filled + 200  # a second panel
    swept.config(CONFIG.replace("    one:", "    # one:").replace("    two:", "    # two:"))
    pixels = picture(swept, "{x: KV cache, y: [PubMedQA]}")
    assert drawn(pixels, LEFT) == 0
    assert drawn(pixels, GREY) > 50


def test_a_key_whose_values_are_words_has_dots_too(swept: Tracked) -> None:
    pixels = picture(swept, "{x: architecture.name, y: [PubMedQA]}")
    assert drawn(pixels, LEFT) > 100
    assert drawn(pixels, GREY) > 20


def test_seeds_are_error_bars(swept: Tracked) -> None:
    swept.config(
        "sweep: {grid: {architecture.num_superblocks: [1, 2]}, seeds: [0, 1]}\nreport: {columns: {loss: a/loss}}"
    )
    seen = []
    for spread in (0.0, 0.5):
        parent = swept.run("sweep", "table", {})
        for count, seed in itertools.product((1, 2), (0, 1)):
            metrics = {"a/loss": 2.0 + count + spread * (2 * seed - 1)}
            swept.fit(f"num_superblocks={count},seed={seed}", "uniattn", UNIATTN, 0.8, metrics, parent=parent)
        seen.append(drawn(picture(swept, "{x: architecture.num_superblocks, y: [loss]}"), LEFT))
    assert seen[1] > seen[0] + 300


def test_a_figure_shows_the_values_of_the_store(swept: Tracked) -> None:
    before = picture(swept, "{x: architecture.num_superblocks, y: [PubMedQA]}")
    swept.client.log_metric(swept.csv()["two"]["runs"], "eval/pubmedqa/acc", 0.65, step=1)
    after = picture(swept, "{x: architecture.num_superblocks, y: [PubMedQA]}")
    assert before.shape != after.shape or (before != after).any()


def test_a_figure_without_values_says_so(swept: Tracked) -> None:
    swept.config(CONFIG.replace("eval/pubmedqa/acc", "eval/pubmedqa/f1"))
    for x in ("architecture.num_superblocks", "KV cache"):
        pixels = picture(swept, f"{{x: {x}, y: [PubMedQA]}}")
        assert drawn(pixels, LEFT) == 0
        assert drawn(pixels, GREY) > 20


def test_labels_of_dots_in_a_heap_do_not_overlap() -> None:
    figure = new_figure()
    axes = figure.add_subplot()
    dots = [Dot(1 + 0.001 * index, 2.0, f"a row of the table {index}") for index in range(8)]
    axes.set_xlim(0, 2)
    axes.set_ylim(0, 4)
    place_labels(axes, dots)
    figure.canvas.draw()
    boxes = [Text.get_window_extent(label) for label in axes.texts]  # without the lines to the dots
    assert len(boxes) == len(dots)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
