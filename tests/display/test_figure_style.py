"""What all figures share: colours by mechanism, units, curves that are added, and the files they are written to."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniattn_pl.architectures import get_architecture
from uniattn_pl.display.figure_style import (
    PALETTE,
    draw_front,
    images,
    mechanism_styles,
    new_axes,
    new_figure,
    pareto_front,
    set_title,
    smoothed,
    time_unit,
)
from uniattn_pl.display.figure_words import key_words, words
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.mechanism import mechanism_of
from uniattn_pl.plan.roles import MIXED, REUSED, SHARED_KV, UNMODIFIED

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


@given(points=POINTS, more_is_better=st.booleans())
def test_the_pareto_front_is_what_none_beats(points: list[tuple[int, int]], more_is_better: bool) -> None:
    sign = -1 if more_is_better else 1

    def is_beaten(point: tuple[int, int]) -> bool:
        return any(other[0] <= point[0] and sign * other[1] <= sign * point[1] and other != point for other in points)

    expected = sorted({point for point in points if not is_beaten(point)})
    assert pareto_front(points, more_is_better=more_is_better) == expected


def test_a_smoothed_curve_keeps_lines_and_ends_and_takes_out_what_alternates() -> None:
    line = [(step, 2.0 * step) for step in range(5, 65)]
    assert [value for _, value in smoothed(line)] == pytest.approx([value for _, value in line])
    noisy = [(step, 3.0 + (-1) ** step) for step in range(60)]
    middle = [value for _, value in smoothed(noisy)[5:-5]]
    assert max(middle) - min(middle) < 0.5
    assert [step for step, _ in smoothed(noisy)] == list(range(60))
    assert smoothed([]) == []


def test_times_are_in_milliseconds_where_all_are_below_a_second() -> None:
    assert time_unit([0.0035, 0.9]) == ("ms", 1000.0)
    assert time_unit([0.0035, 1.2]) == ("s", 1.0)


def test_a_figure_becomes_a_png_and_an_svg_with_the_same_bytes_each_time() -> None:
    def files() -> dict[str, bytes]:
        figure = new_figure()
        axes = new_axes(figure)
        draw_front(axes, [(1, 2), (2, 1)])
        set_title(axes, "loss over cost", "smollm2-135m", "a machine")
        return images(figure, "one")

    first = files()
    assert list(first) == ["one.png", "one.svg"]
    assert first["one.png"].startswith(b"\x89PNG")
    assert ET.fromstring(first["one.svg"]).tag.endswith("svg")
    assert files() == first


def test_colours_are_those_of_mechanisms_and_names_of_one_stay_apart() -> None:
    styles = mechanism_styles({"a": REUSED, "b": SHARED_KV, "c": REUSED})
    assert styles["a"]["color"] == PALETTE[REUSED]
    assert styles["b"]["color"] == PALETTE[SHARED_KV]
    assert styles["c"] not in (styles["a"], styles["b"])


def test_the_mechanism_of_a_plan_is_that_of_all_its_changed_layers() -> None:
    stock = LayerPlan.unmodified(6)
    assert mechanism_of(stock) == UNMODIFIED
    assert mechanism_of(stock.reuse([2, 3], 1, compensated=True)) == REUSED
    assert mechanism_of(stock.share_kv([2], 1, compensated=False)) == SHARED_KV
    assert mechanism_of(stock.reuse([2], 1, compensated=True).drop([5], compensated=False)) == MIXED
    assert get_architecture("uniattn").mechanism == REUSED
    assert get_architecture("search").mechanism == MIXED


def test_names_are_words_and_what_users_named_stays() -> None:
    assert words("num_superblocks=4,seed=1") == "Superblocks 4, seed 1"
    assert words("llmdrop on the same layers") == "LLMDrop on the same layers"
    assert words("my_own-row 2") == "my_own-row 2"
    assert key_words("architecture.superblock_size") == "layers per Superblock"
    assert key_words("training.batch_size") == "batch size"
