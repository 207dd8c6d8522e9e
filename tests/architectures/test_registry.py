"""The registry: the paper's settings, options that do not fit, and a third party's own architecture."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from tests.shapes import toy_shape

from uniattn_pl import architectures
from uniattn_pl.architectures import CLA, Architecture, Baseline, LLMDrop, SharedAttention, UniAttn
from uniattn_pl.errors import UserError
from uniattn_pl.plan import LayerPlan, ModelShape, PlanError, costs


def sources(plan: LayerPlan) -> dict[int, int]:
    return {row.index: row.source for row in plan.rows if row.source is not None}


def test_uniattn_on_32_layers_is_the_papers_setting() -> None:
    """Paper Table 4: Superblocks [17-20], [21-24], [25-28], [29-32] counted from 1; KV retain rate 81.25 %."""
    shape = toy_shape(32)
    plan = UniAttn().compile(shape)
    expected = {first + offset: first for first in (16, 20, 24, 28) for offset in (1, 2, 3)}
    assert sources(plan) == expected
    assert plan.compensated == tuple(sorted(expected))
    assert costs.kv_retain_rate(plan, shape, length=8192) == 0.8125


def test_uniattn_for_gemma_2_starts_at_layer_21() -> None:
    """Paper Table 4: [22-25] ... [38-41] counted from 1, of 42 layers."""
    plan = UniAttn(first_layer=21, superblock_size=4, num_superblocks=5).compile(toy_shape(42))
    assert plan.operated == tuple(i for i in range(21, 41) if (i - 21) % 4)


def test_cla_full_and_half_retain_what_the_paper_says() -> None:
    """Paper Table 1: KV cache 62.5 % and 81.25 %."""
    shape = toy_shape(32)
    rates = [costs.kv_retain_rate(CLA(num_superblocks=n).compile(shape), shape, length=100) for n in (4, 2)]
    assert rates == [0.625, 0.8125]


def test_llmdrop_with_the_papers_indices() -> None:
    """Paper Table 6, LLaMA-3.1 8B, LLMDrop-Half, counted from 0."""
    shape = toy_shape(32)
    plan = LLMDrop(layers=[18, 21, 19, 20, 26, 22]).compile(shape)
    assert plan.operated == (18, 19, 20, 21, 22, 26)
    assert costs.kv_retain_rate(plan, shape, length=100) == 0.8125


@pytest.mark.parametrize("architecture", [UniAttn, CLA, SharedAttention, LLMDrop])
def test_compensation_is_a_choice_everywhere_and_on_by_default_only_for_uniattn(architecture: type) -> None:
    options = {"layers": [2, 3]} if architecture is LLMDrop else {}
    shape = toy_shape(16)
    plain = architecture(**options, compensation=False).compile(shape)
    compensated = architecture(**options, compensation=True).compile(shape)
    default = architecture(**options).compile(shape)
    assert plain.compensated == ()
    assert compensated.compensated == compensated.operated == plain.operated
    assert default == (compensated if architecture is UniAttn else plain)


def test_baseline_changes_nothing() -> None:
    assert Baseline().compile(toy_shape(3)) == LayerPlan.unmodified(3)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (UniAttn(num_superblocks=9), "need 36 layers; the model has 32 .* At most num_superblocks=8 fit"),
        (UniAttn(superblock_size=40, num_superblocks=1), r"has 32 \(0 to 31\). At most superblock_size=32 fits"),
        (UniAttn(first_layer=30, num_superblocks=1), "first_layer 30 need 4 layers.* At most superblock_size=2 fits"),
        (UniAttn(first_layer=31, num_superblocks=1), "Choose a lower first_layer"),
        (UniAttn(superblock_size=1), "at least 2 layers"),
        (CLA(num_superblocks=0), "at least 1 is needed"),
        (LLMDrop(layers=[]), "needs layers: a list of indices from 0 to 31"),
        (LLMDrop(layers=[3, 3]), "lists 3 more than once"),
        (LLMDrop(layers=[40]), "there is no layer 40"),
        (SharedAttention(first_layer=5, last_layer=5), "last_layer is 5; it must lie above first_layer, 5"),
    ],
)
def test_options_that_do_not_fit_are_named(architecture: Architecture, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        architecture.compile(toy_shape(32))


@pytest.mark.parametrize(("layers", "count"), [(4, 1), (8, 2), (15, 3), (16, 4), (42, 4)])
def test_a_small_model_has_as_many_superblocks_as_fit_where_no_number_is_asked_for(layers: int, count: int) -> None:
    assert UniAttn().compile(toy_shape(layers)) == UniAttn(num_superblocks=count).compile(toy_shape(layers))
    UniAttn(selection="greedy").check(toy_shape(layers))  # as many are chosen by measurement
    with pytest.raises(PlanError, match="At most num_superblocks=2 fit"):
        UniAttn(num_superblocks=4).compile(toy_shape(8))


def test_every_option_has_help() -> None:
    for name in architectures.ARCHITECTURES:
        architecture = architectures.get_architecture(name)
        assert architecture.summary
        assert all(field.metadata["help"] for field in fields(architecture))  # type: ignore[arg-type]


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown architecture .uniatn.\. Did you mean .uniattn.\?"):
        architectures.get_architecture("uniatn")


def test_a_third_party_registers_an_architecture_in_a_few_lines() -> None:
    @architectures.register
    @dataclass
    class EveryOther(Architecture):
        name = "every_other"
        summary = "each odd layer reuses the map below it"

        def compile(self, shape: ModelShape) -> LayerPlan:
            plan = LayerPlan.unmodified(shape.num_layers)
            for layer in range(1, shape.num_layers, 2):
                plan = plan.reuse([layer], layer - 1, compensated=True)
            return plan

    try:
        assert architectures.get_architecture("every_other")().compile(toy_shape(6)).operated == (1, 3, 5)
        with pytest.raises(ValueError, match="already registered"):
            architectures.register(type("Other", (EveryOther,), {}))
    finally:
        del architectures.ARCHITECTURES["every_other"]


PACKAGE = """
from dataclasses import dataclass
from uniattn_pl.architectures import Architecture
from uniattn_pl.plan import LayerPlan

@dataclass
class DropTop(Architecture):
    name, summary = "drop_top", "drops the attention of the top layer"

    def compile(self, shape):
        return LayerPlan.unmodified(shape.num_layers).drop([shape.num_layers - 1], compensated=True)
"""


def test_an_installed_package_offers_an_architecture_through_an_entry_point(tmp_path: Path) -> None:
    """As pip leaves it on disk: a module and its metadata; nothing imports it but the registry."""
    (tmp_path / "drop_top.py").write_text(PACKAGE)
    metadata = tmp_path / "drop_top-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: drop-top\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[uniattn_pl.architectures]\ndrop_top = drop_top:DropTop\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "uniattn_pl", "list", "architectures"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "drop_top" in listed.stdout
    assert "drops the attention of the top layer" in listed.stdout
