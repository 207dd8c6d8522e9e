"""Models by name, made by whoever asks first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from uniattn_pl.families import catalogue
from uniattn_pl.files import CACHE_VARIABLE


def test_ranks_that_start_together_make_a_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    ranks, made = 4, list[Path]()
    together = Barrier(ranks)

    def materialise(folder: Path) -> None:
        made.append(folder)
        (folder / "config.json").write_text("{}")

    monkeypatch.setitem(catalogue.MODELS, "new", catalogue.ModelEntry("new", materialise))

    def rank(_: int) -> bool:
        together.wait()
        return (catalogue.named_model("new") / "config.json").exists()

    with ThreadPoolExecutor(ranks) as pool:
        assert all(pool.map(rank, range(ranks)))
    assert len(made) == 1, "one that is made again is away while it takes the other's place"


def test_a_rank_that_is_not_the_first_writes_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda *_: 1)
    folder = catalogue.named_model("tiny-llama")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
