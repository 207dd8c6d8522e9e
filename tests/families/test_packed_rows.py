"""Packing is refused for a family in which packed rows would see each other, and for no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny_models import SPECIAL, random_model, stock, tokens

from uniattn_pl.cli import main
from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import FAMILIES
from uniattn_pl.families.packed_rows import check_rows_stay_apart
from uniattn_pl.modeling.loading.pretrained import load_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_is_refused_exactly_where_rows_see_each_other(family: str) -> None:
    model, ids = stock(family), tokens(1, 20)
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None]
    packed = model(ids, position_ids=positions, use_cache=False).logits
    alone = torch.cat([model(row, use_cache=False).logits for row in (ids[:, :9], ids[:, 9:])], dim=1)
    try:
        check_rows_stay_apart(model.to("meta"))
    except UserError:
        assert (packed - alone).abs().max() > 0.1
    else:
        torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_a_fit_is_told_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer("tiny-llama")
    tokenizer.save_pretrained(tmp_path)
    random_model("granitemoehybrid", **SPECIAL["granitemoehybrid"], vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    words = ["--config", str(ROOT / "experiments/quickstart.yaml"), "--dry-run", "architecture=baseline"]
    assert main(["fit", *words, f"model.source={tmp_path}", "data.packing=true", "data.max_length=32"]) == 2
    assert "packed rows would see each other: its masks do not look at positions" in capsys.readouterr().err
