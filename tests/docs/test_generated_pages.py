"""Pictures, costs and options in docs/ are those of the plans and dataclasses that they are made of (`make pages`)."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from tests.docs.documented import ROOT
from tools.pages.architecture_pages import pages
from tools.pages.examples import EXAMPLES, LARGE, SMALL, shape
from tools.pages.figures import figures, roles
from tools.pages.role_pictures import role_picture

from uniattn_pl.architectures import available
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.costs import parameters
from uniattn_pl.plan.roles import OTHER, ROLES

FOLDER = ROOT / "docs" / "architectures"


def test_what_is_generated_is_committed() -> None:
    stale = [
        str(file.relative_to(ROOT))
        for file, text in {**figures(), **pages()}.items()
        if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: make pages"


def test_every_architecture_has_a_page_with_source_and_use() -> None:
    assert set(EXAMPLES) == set(available())
    for name in EXAMPLES:
        text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["When", "Measured"]
        assert "https://arxiv.org/abs/" in text or name in ("given", "baseline", "search")


def test_every_role_has_a_section_with_its_picture() -> None:
    page = (ROOT / "docs/concepts/roles.md").read_text(encoding="utf-8")
    assert set(roles()) == ROLES.keys() - {OTHER}
    for role in ROLES:
        section = page.partition(f"\n## {role}\n")[2].partition("\n## ")[0]
        assert (f"](../figures/roles/{role}.svg)" in section) == (role in roles())


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [
        ("uniattn", 1 - 12 / 60, 1 - 12 / 64),  # 12 of the layers cache values alone
        ("cla", 1 - 6 / 30, 1 - 6 / 32),  # 6 cache nothing
        ("yoco", 16 / 30, 17 / 32),
        ("gqa", 1 - 10 / 30 * 2 / 3, 1 - 10 / 32 * 7 / 8),  # one head of three, of eight
        ("window", 1 - 10 / 30 * (1 - 131 / 512), 1 - 10 / 32 * (1 - 131 / 8192)),
    ],
)
def test_the_cache_of_an_example_is_what_one_counts_by_hand(name: str, small: float, large: float) -> None:
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    for model, rate in ((SMALL, small), (LARGE, large)):
        assert f"| {model} | {100 * rate:.1f} % |" in text


@pytest.mark.parametrize(("model", "published"), [(SMALL, 134_515_008), (LARGE, 8_030_261_248)])
def test_the_models_are_of_the_published_sizes(model: str, published: int) -> None:
    assert parameters(LayerPlan.stock(shape(model)), shape(model)) == published


def test_a_picture_shows_what_a_layer_has_and_what_it_reads() -> None:
    """Boxes with a full border are there, dashed ones are not."""
    reuse = LayerPlan.unmodified(2).reuse([1], 0, compensated=True)
    root = ElementTree.fromstring(role_picture(reuse, "reuse"))
    boxes = [part for part in root.iter() if part.tag.endswith("rect")][1:]
    pale = [box for box in boxes if box.get("stroke-dasharray")]
    labels = ["".join(text.itertext()).replace("\u200b", "") for text in root.iter() if text.tag.endswith("text")]
    assert len(pale) == 4, "W_q, W_k, the map and the K of the cache of one layer"
    assert labels.count("Wc") == 1
    assert {"layer 0: full", "layer 1: reuse"} <= set(labels)
