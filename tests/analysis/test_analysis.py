"""Analyses against direct computation from what transformers returns, and the command that runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from matplotlib.patches import Rectangle
from tests.tiny_models import VOCABULARY, converted, stock
from transformers import PreTrainedModel

from uniattn_pl.analysis import analysis_figures
from uniattn_pl.analysis.depth import depth_factor
from uniattn_pl.analysis.similarity_variants import VARIANTS, MapSimilarity, map_similarity
from uniattn_pl.cli import main
from uniattn_pl.plan import LayerPlan

Batch = dict[str, torch.Tensor]
FAMILIES = ["llama", "gemma2", "olmo2"]


def batch() -> Batch:
    ids = torch.randint(3, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(12) < torch.tensor([12, 9, 5])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def whole_maps(model: PreTrainedModel) -> list[torch.Tensor]:
    """By sequence, all attention maps [N, H, L, L]."""
    model.set_attn_implementation("eager")
    rows = [ids[mask.bool()][None] for ids, mask in zip(*batch().values(), strict=True)]
    return [torch.stack(model(row, output_attentions=True).attentions)[:, 0] for row in rows]


def cosine(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(left, right, dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_variant_of_similarity(family: str) -> None:
    found, maps = map_similarity(stock(family), [batch()]), whole_maps(stock(family))
    joint = [m.transpose(1, 2).flatten(2) for m in maps]
    heads = torch.cat([cosine(m[1:, :, None], m[:-1, None]) for m in maps], dim=-1).mean(-1)
    expected = {
        "head_averaged": torch.cat([cosine(m.mean(1)[1:], m.mean(1)[:-1]) for m in maps], dim=1).mean(1),
        "concatenated": torch.cat([cosine(j[1:], j[:-1]) for j in joint], dim=1).mean(1),
        "per_head": heads.diagonal(dim1=1, dim2=2).mean(-1),
        "best_match": heads.amax(-1).mean(-1),
    }
    rest = [m[:, :, 1:, 1:] / m[:, :, 1:, 1:].sum(-1, keepdim=True) for m in maps]
    expected["without_sink"] = torch.cat([cosine(r[1:], r[:-1]) for r in rest], dim=-1).mean((1, 2))
    assert set(expected) == set(VARIANTS) == set(found.adjacent)
    for name, values in expected.items():
        assert found.adjacent[name] == pytest.approx(values.tolist(), abs=1e-5), name
    assert found.head_matches == heads.argmax(-1).tolist()
    matrix = torch.tensor(found.matrix)
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(len(matrix)))
    averaged = [m.mean(1) for m in maps]
    corner = torch.cat([cosine(a[0], a[4]) for a in averaged]).mean().item()
    assert found.matrix[0][4] == pytest.approx(corner, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_depth_factor_is_that_of_the_hidden_states(family: str) -> None:
    for model in (stock(family), converted(family, "uniattn")):
        data = batch()
        found = depth_factor(model, [data])
        states = model(
            data["input_ids"], attention_mask=data["attention_mask"], output_hidden_states=True
        ).hidden_states
        mask = data["attention_mask"].bool()
        # The last state is normed, so the top layer cannot be read off it.
        for layer in range(len(found) - 1):
            ratio = (states[layer + 1] - states[layer]).norm(dim=-1) / states[layer].norm(dim=-1)
            assert found[layer] == pytest.approx(ratio[mask].mean().item(), rel=1e-5)


def test_the_command_writes_tables_and_figures_to_disk_and_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(
        "name: tiny\nmodel: {source: tiny-llama, dtype: float32}\ndata: {validation_size: 8, num_samples: 24}\n"
        "calibration: {held_out_samples: 4}\narchitecture: {superblock_size: 3, num_superblocks: 1}\n"
    )
    assert main(["analyze", "--config", "a.yaml", "--tokens", "1200"]) == 0
    assert "written to runs/tiny/analysis" in capsys.readouterr().out
    folder = tmp_path / "runs" / "tiny" / "analysis"
    tables = {"similarity", "importance", "depth", "selection", "compensation"}
    assert {path.stem for path in folder.glob("*.txt")} == tables
    similarity = {"similarity_matrix", "similarity_adjacent", "head_matches"}
    assert {path.stem for path in folder.glob("*.png")} == similarity | tables - {"similarity"}
    assert {path.stem for path in folder.glob("*.svg")} == similarity | tables - {"similarity"}
    depth = json.loads((folder / "depth.json").read_text())
    assert list(depth) == ["original", "uniattn", "cla on the same layers"]
    for name in ("uniattn", "cla on the same layers"):  # a source may compute its own output by another kernel
        assert depth[name][:6] == pytest.approx(depth["original"][:6], rel=1e-5)
        assert depth[name][6] != pytest.approx(depth["original"][6], rel=1e-5)
    artifacts = {path.name for path in (tmp_path / "mlruns" / "artifacts").rglob("analysis/*")}
    assert artifacts == {path.name for path in folder.iterdir()}


def test_an_analysis_that_needs_no_plan_searches_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(
        "name: tiny\nmodel: {source: tiny-llama, dtype: float32}\ndata: {validation_size: 8, num_samples: 24}\n"
        "architecture: {name: search, budget: 0.9, search_tokens: 100}\n"
    )
    assert main(["analyze", "--config", "a.yaml", "--tokens", "400", "--only", "similarity"]) == 0
    assert (tmp_path / "runs/tiny/analysis/similarity.txt").is_file()
    assert not (tmp_path / "runs/tiny/search").exists()


def test_wrong_requests_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: tiny\nmodel: {source: tiny-llama}\n")
    assert main(["analyze", "--config", str(tmp_path / "a.yaml"), "--only", "similarty", "--tokens", "0"]) == 2
    printed = capsys.readouterr().err
    assert "no analysis 'similarty'. Did you mean 'similarity'?" in printed
    assert "--tokens must be at least 1, got 0" in printed


def test_the_superblocks_of_a_plan_are_outlined_in_the_similarity_matrix() -> None:
    plan = LayerPlan.unmodified(8).reuse([2, 3], 1, compensated=True).reuse([5, 6, 7], 4, compensated=True)
    cosines = MapSimilarity({}, [[1.0] * 8 for _ in range(8)], [])
    axes = analysis_figures.similarity_matrix(cosines, plan, "a model").axes[0]
    outlined = [(box.get_xy(), box.get_width()) for box in axes.patches if isinstance(box, Rectangle)]
    assert outlined == [((0.5, 0.5), 3), ((3.5, 3.5), 4)]
    assert not analysis_figures.similarity_matrix(cosines, None).axes[0].patches
