"""The rule that chooses a kernel: who wins where, as a table, and what every choice must respect."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniattn_pl.families.attention_kernels import ATTENTION_BACKENDS
from uniattn_pl.kernels.choice import AttentionCall, choose
from uniattn_pl.plan import REUSE_MODES

CHUNK = AttentionCall("sdpa", "auto", "cpu", queries=256, keys=4096, map_bytes=2**24, map_limit=2**26)
READ = replace(CHUNK, map_read=True)
calls = st.builds(
    AttentionCall,
    backend=st.sampled_from(ATTENTION_BACKENDS),
    reuse_mode=st.sampled_from(REUSE_MODES),
    device=st.sampled_from(["cpu", "cuda"]),
    queries=st.integers(1, 8),
    keys=st.integers(1, 8),
    map_bytes=st.integers(0, 4),
    map_limit=st.just(2),
    gradient=st.booleans(),
    compiling=st.booleans(),
    plain=st.booleans(),
    map_read=st.booleans(),
    map_observed=st.booleans(),
    evicting=st.booleans(),
    triton=st.booleans(),
    tiles_faster=st.booleans(),
)
ON_CARD = replace(READ, device="cuda", triton=True)


@pytest.mark.parametrize(
    ("call", "kernel", "keeps"),
    [
        (CHUNK, "grouped", False),
        (replace(CHUNK, device="cuda"), "backend", False),
        (replace(CHUNK, queries=4096), "backend", False),
        (replace(CHUNK, map_bytes=2**27), "backend", False),
        (replace(CHUNK, gradient=True), "backend", False),
        (replace(CHUNK, plain=False), "backend", False),
        (READ, "grouped", True),
        (replace(READ, device="cuda"), "backend", False),
        (replace(READ, device="cuda", queries=1), "grouped", True),
        (replace(READ, device="cuda", reuse_mode="materialise"), "grouped", True),
        (replace(READ, device="cuda", map_observed=True, evicting=True), "grouped", True),
        (replace(READ, map_bytes=2**27), "backend", False),
        (replace(READ, queries=1, map_bytes=2**27), "grouped", True),
        (replace(READ, gradient=True), "backend", False),
        (replace(READ, gradient=True, reuse_mode="materialise"), "family", True),
        (replace(READ, reuse_mode="replay"), "grouped", False),
        (replace(READ, backend="eager", gradient=True), "family", True),
        (replace(READ, backend="eager", reuse_mode="replay"), "backend", False),
        (replace(READ, backend="flex_attention", reuse_mode="materialise"), "backend", False),
        (replace(READ, backend="flash_attention_2", device="cuda", queries=1), "backend", False),
        (replace(READ, plain=False), "family", True),
        (replace(READ, compiling=True), "family", True),
        (replace(CHUNK, map_observed=True, evicting=True), "grouped", False),
        (replace(READ, reuse_mode="replay", map_observed=True, evicting=True), "grouped", True),
        (ON_CARD, "backend", False),
        (replace(ON_CARD, tiles_faster=True), "tiles", True),
        (replace(ON_CARD, tiles_faster=True, compiling=True), "backend", False),
        (replace(ON_CARD, tiles_faster=True, gradient=True), "backend", False),
        (replace(ON_CARD, reuse_mode="tiles"), "tiles", True),
        (replace(ON_CARD, reuse_mode="tiles", triton=False), "backend", False),
        (replace(ON_CARD, reuse_mode="tiles_fp8", gradient=True), "backend", False),
        (replace(ON_CARD, reuse_mode="materialise", tiles_faster=True), "grouped", True),
        (replace(ON_CARD, queries=1), "rows", True),
        (replace(ON_CARD, queries=1, compiling=True), "rows", True),
        (replace(ON_CARD, queries=1, reuse_mode="tiles"), "rows", True),
        (replace(ON_CARD, queries=1, reuse_mode="replay"), "backend", False),
        (replace(ON_CARD, queries=1, map_observed=True, evicting=True), "grouped", True),
        (replace(ON_CARD, queries=1, backend="eager"), "family", True),
        (replace(ON_CARD, queries=1, map_read=False), "backend", False),
    ],
)
def test_who_computes_an_attention_and_whether_its_map_is_kept(call: AttentionCall, kernel: str, keeps: bool) -> None:
    choice = choose(call)
    assert (choice.kernel, choice.keeps_map) == (kernel, keeps)
    assert choice.reason


@given(calls)
def test_every_choice_can_do_what_is_needed(call: AttentionCall) -> None:
    choice = choose(call)
    if choice.keeps_map:
        assert call.map_read
    if choice.kernel in ("rows", "tiles"):
        assert call.triton
        assert not call.gradient
        assert not call.map_observed, "they give no map as a whole"
        assert not call.evicting
    elif choice.keeps_map or call.map_observed:
        assert choice.kernel in ("grouped", "family"), "the backend need not return its map"
    if choice.kernel == "grouped":
        assert call.backend == "sdpa"
        assert call.plain
        assert not call.gradient
        assert not call.compiling
