"""`generate` on real folders, stock and converted, with the whole cache and with a share of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from uniattn_pl.cli import main
from uniattn_pl.modeling.caches import h2o_cache
from uniattn_pl.modeling.conversion.convert import apply_architecture
from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer

PROMPT = "The heart pumps blood through the body, and the lungs take up oxygen."


@pytest.fixture(scope="module", params=["stock", "uniattn"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as a fit leaves it."""
    path: Path = tmp_path_factory.mktemp(request.param)
    model = load_model("tiny-llama", dtype="float32")
    if request.param == "uniattn":
        apply_architecture(model, "uniattn", superblock_size=4, num_superblocks=1)
    model.save_pretrained(path)
    load_tokenizer("tiny-llama").save_pretrained(path)
    return path


def generated(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["generate", "--from", str(folder), "--prompt", PROMPT, "--max-new-tokens", "6", *words]) == 0
    return capsys.readouterr().out


def test_a_share_of_the_cache_is_kept_for_any_model(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[Any] = []
    compress = h2o_cache.H2OCache.compress

    def remember(cache: h2o_cache.H2OCache) -> None:
        compress(cache)
        held = {kept.scores.shape[-1] for kept in cache.groups.values() if kept.scores is not None}
        caches.append((cache.budget, held))

    whole = generated(folder, capsys)
    assert whole.strip()
    assert generated(folder, capsys, "--h2o", "1.0") == whole
    monkeypatch.setattr(h2o_cache.H2OCache, "compress", remember)
    generated(folder, capsys, "--h2o", "0.4")
    tokens = len(load_tokenizer("tiny-llama")(PROMPT).input_ids)
    assert caches == [(round(0.4 * tokens), {round(0.4 * tokens)})] * 5


@pytest.mark.parametrize("rate", ["0", "1.5", "-1"])
def test_a_share_is_a_share(rate: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--from", str(folder), "--prompt", "x", "--h2o", rate]) == 2
    assert "--h2o is a share of the prompt's tokens, above 0 and at most 1" in capsys.readouterr().err
