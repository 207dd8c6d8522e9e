"""Every YAML file in configs/ and experiments/ loads against the schema, and experiments say what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from uniattn_pl.architectures import CLA, LLMDrop, UniAttn
from uniattn_pl.config import load_config

ROOT = Path(__file__).parents[2]
BLOCKS = sorted((ROOT / "configs").rglob("*.yaml"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def local_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the files that some experiments expect on the user's machine."""
    for name in ("pmc_llama_instructions_1000.json", "tulu3_sft_filtered_1000.json"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / "wiki.test.raw").write_text("text")
    monkeypatch.setenv("UNIATTN_PL_DATA", str(tmp_path))
    monkeypatch.setenv("UNIATTN_PL_EVALUATION_DATA", str(tmp_path))


@pytest.mark.parametrize("file", [*BLOCKS, *EXPERIMENTS], ids=lambda file: str(file.relative_to(ROOT)))
def test_a_shipped_file_loads(file: Path) -> None:
    assert file.read_text(encoding="utf-8").startswith("# "), "a shipped file opens with what it is"
    load_config([file])


def test_experiments_have_names_of_their_own_and_say_how_to_run_them() -> None:
    runnable = [file for file in EXPERIMENTS if file.name != "base.yaml"]
    for file in runnable:
        text = file.read_text(encoding="utf-8")
        assert f"--config {file.relative_to(ROOT)}" in text
        assert "# Takes:" in text
    names = [load_config([file]).config.name for file in runnable]
    assert len(set(names)) == len(names)


def test_paper_settings_are_0_based() -> None:
    paper = ROOT / "experiments" / "paper"
    gemma = load_config([paper / "gemma-2-9b" / "uniattn.yaml"])
    assert gemma.architecture == UniAttn(superblock_size=4, num_superblocks=5, first_layer=21)
    half = load_config([paper / "gemma-2-9b" / "cla_half.yaml"])
    assert half.architecture == CLA(superblock_size=4, num_superblocks=3, first_layer=29)
    dropped = load_config([paper / "llama-2-7b" / "llmdrop_half.yaml"])
    assert dropped.architecture == LLMDrop(layers=[22, 19, 31, 26, 21, 23])
    assert dropped.config.training.stage2.learning_rate == 2e-5
