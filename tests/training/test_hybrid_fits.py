"""A hybrid, a latent attention and one with sinks through both stages: killed, resumed, in shards, LoRA, exported."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_models import SPECIAL, random_model
from tests.training.attempts import Attempt, run_attempts
from tests.training.test_kill_and_resume import ROWS, TIMED, history
from tests.training.test_strategies import FSDP, LORA, MIDDLE_OF_STAGE_2, SHARDS, WHOLE

from uniattn_pl.cli import main
from uniattn_pl.modeling.loading.pretrained import load_folder, load_tokenizer

HYBRID, LATENT, SINKS = "qwen3_next", "deepseek_v3", "gpt_oss"
OF_HYBRID, OF_LATENT, OF_SINKS = (f"model.source=../{family}" for family in (HYBRID, LATENT, SINKS))
EAGER, SMALL_MEMORY = "model.attn_implementation=eager", "training.gradient_checkpointing=true"
ATTEMPTS = (
    Attempt("hybrid alone", 1, (OF_HYBRID,)),
    Attempt("hybrid killed", 1, (OF_HYBRID,), (0, MIDDLE_OF_STAGE_2)),
    Attempt("hybrid killed", 1, (OF_HYBRID,)),
    Attempt("hybrid shards", 2, (OF_HYBRID, FSDP, SHARDS)),
    Attempt("latent alone", 1, (OF_LATENT,)),
    Attempt("latent lora", 2, (OF_LATENT, FSDP, LORA)),
    Attempt("sinks alone", 1, (OF_SINKS, EAGER)),
    Attempt("sinks shards", 2, (OF_SINKS, EAGER, FSDP, SMALL_MEMORY)),
)


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all attempts ran; the kill ended its fit, and everything else ended well."""
    root = tmp_path_factory.mktemp("fits")
    tokenizer = load_tokenizer("tiny-llama")
    for family in (HYBRID, LATENT, SINKS):
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
        random_model(family, **SPECIAL[family] | sizes).save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
    run_attempts(root, ATTEMPTS, config=WHOLE, rows=ROWS)
    return root


def run_of(fits: Path, name: str) -> Path:
    return fits / name / "runs/killed"


def weights(fits: Path, name: str, folder: str = "final") -> dict[str, torch.Tensor]:
    return load_file(run_of(fits, name) / folder / "model.safetensors")


def test_a_hybrid_killed_in_stage_2_ends_bit_for_bit_as_one_that_was_not(fits: Path) -> None:
    for folder in ("initial", "stage1", "final"):
        files = [run_of(fits, name) / folder / "model.safetensors" for name in ("hybrid alone", "hybrid killed")]
        assert hashlib.sha256(files[0].read_bytes()).digest() == hashlib.sha256(files[1].read_bytes()).digest(), folder
    alone, killed = history(fits / "hybrid alone"), history(fits / "hybrid killed")
    assert {key: alone[key] for key in alone.keys() - TIMED} == {key: killed[key] for key in killed.keys() - TIMED}


@pytest.mark.parametrize("kind", ["hybrid", "sinks"])
def test_two_ranks_with_shards_train_as_one(fits: Path, kind: str) -> None:
    """Sinks are parameters of the source, which its readers need after its shards were freed."""
    alone, shards = history(fits / f"{kind} alone"), history(fits / f"{kind} shards")
    assert [v for _, v in shards["stage2/loss"]] == pytest.approx([v for _, v in alone["stage2/loss"]], abs=1e-3)


@pytest.mark.parametrize("name", ["hybrid alone", "latent alone"])
def test_stage_1_trains_w_c_alone_and_stage_2_all_the_rest(fits: Path, name: str) -> None:
    initial, first, final = (weights(fits, name, folder) for folder in ("initial", "stage1", "final"))
    assert {key for key in first if not torch.equal(first[key], initial[key])} == {key for key in first if "w_c" in key}
    parts = ("linear_attn", "self_attn", "w_c", "mlp") if "hybrid" in name else ("kv_a_proj", "kv_b_proj", "w_c", "mlp")
    moved = {key for key in final if not torch.equal(final[key], first[key])}
    assert all(any(part in key for key in moved) for part in parts)


def test_low_rank_updates_of_a_latent_attention_merge_into_what_was_trained(fits: Path) -> None:
    run, ids = run_of(fits, "latent lora"), torch.arange(12)[None]
    with torch.no_grad():
        adapter, final, start = (load_folder(run / name)(ids).logits for name in ("adapter", "final", "stage1"))
    torch.testing.assert_close(adapter, final, rtol=0, atol=1e-5)
    assert not torch.allclose(final, start, atol=1e-3)


@pytest.mark.parametrize("name", ["hybrid alone", "latent alone"])
@torch.no_grad()
def test_the_model_is_exported_and_loaded(
    fits: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fits / name)
    assert main(["export", "--from", "runs/killed", "--to", str(tmp_path / "exported")]) == 0
    ids = torch.arange(12)[None]
    model, loaded = load_folder(run_of(fits, name) / "final"), load_folder(tmp_path / "exported")
    assert loaded.layer_plan == model.layer_plan
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    text = loaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert text.shape == (1, 16)
