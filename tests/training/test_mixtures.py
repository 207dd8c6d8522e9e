"""Mixtures of experts through both stages with their routers' loss: killed and resumed, in shards, with LoRA."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_models import SPECIAL, random_model
from tests.training.attempts import Attempt, run_attempts
from tests.training.test_kill_and_resume import ROWS, TIMED, history
from tests.training.test_strategies import FSDP, LORA, MIDDLE_OF_STAGE_1, MIDDLE_OF_STAGE_2, SHARDS, WHOLE

from uniattn_pl.modeling.loading.pretrained import load_folder, load_tokenizer

FAMILIES = ("mixtral", "qwen3_moe")  # the second has a dense layer, which has no router
OF_MIXTRAL, OF_QWEN = (f"model.source=../{family}" for family in FAMILIES)
ATTEMPTS = (
    Attempt("mixtral alone", 1, (OF_MIXTRAL,)),
    Attempt("mixtral killed", 1, (OF_MIXTRAL,), (0, MIDDLE_OF_STAGE_2)),
    Attempt("mixtral killed", 1, (OF_MIXTRAL,)),
    Attempt("mixtral unmodified", 2, (OF_MIXTRAL, FSDP, "architecture={name: baseline}")),
    Attempt("mixtral lora", 1, (OF_MIXTRAL, LORA)),
    Attempt("qwen3_moe alone", 1, (OF_QWEN,)),
    Attempt("qwen3_moe shards", 2, (OF_QWEN, FSDP, SHARDS)),
    Attempt("qwen3_moe killed", 2, (OF_QWEN, FSDP, SHARDS), (1, MIDDLE_OF_STAGE_1)),
    Attempt("qwen3_moe killed", 2, (OF_QWEN, FSDP, SHARDS)),
    Attempt("qwen3_moe lora", 2, (OF_QWEN, FSDP, LORA)),
)


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all attempts ran; each kill ended every rank, and everything else ended well."""
    root = tmp_path_factory.mktemp("fits")
    tokenizer = load_tokenizer("tiny-llama")
    for family in FAMILIES:
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "router_aux_loss_coef": 0.5}
        random_model(family, **SPECIAL[family] | sizes).save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
    run_attempts(root, ATTEMPTS, config=WHOLE.replace("training:\n", "training:\n  router_loss: true\n"), rows=ROWS)
    return root


def run_of(fits: Path, name: str) -> Path:
    return fits / name / "runs/killed"


def weights(fits: Path, name: str, folder: str = "final") -> dict[str, torch.Tensor]:
    return load_file(run_of(fits, name) / folder / "model.safetensors")


@pytest.mark.parametrize(
    ("whole", "killed"), [("mixtral alone", "mixtral killed"), ("qwen3_moe shards", "qwen3_moe killed")]
)
def test_a_fit_killed_in_a_stage_ends_bit_for_bit_as_one_that_was_not(fits: Path, whole: str, killed: str) -> None:
    for folder in ("initial", "stage1", "final"):
        files = [run_of(fits, name) / folder / "model.safetensors" for name in (whole, killed)]
        assert hashlib.sha256(files[0].read_bytes()).digest() == hashlib.sha256(files[1].read_bytes()).digest(), folder
    histories = history(fits / whole), history(fits / killed)
    assert histories[0].keys() == histories[1].keys()
    for key in histories[0].keys() - TIMED:
        assert histories[0][key] == histories[1][key], key


def test_two_ranks_with_shards_train_as_one(fits: Path) -> None:
    alone, shards = history(fits / "qwen3_moe alone"), history(fits / "qwen3_moe shards")
    # a token between two experts may change sides with a rounding, and counts for the one or for the other
    for key, tolerance in (("stage1/router_loss", 5e-3), ("stage2/router_loss", 5e-3), ("stage2/loss", 1e-3)):
        assert len(alone[key]) == 6
        assert [v for _, v in shards[key]] == pytest.approx([v for _, v in alone[key]], abs=tolerance)


def test_stage_1_trains_w_c_alone_and_stage_2_experts_and_routers_too(fits: Path) -> None:
    for family in FAMILIES:
        initial, first, final = (weights(fits, f"{family} alone", folder) for folder in ("initial", "stage1", "final"))
        assert {name for name in first if not torch.equal(first[name], initial[name])} == {
            name for name in first if "w_c" in name
        }
        moved = {name for name in final if not torch.equal(final[name], first[name])}
        assert {part for part in ("experts", "mlp.gate.", "w_c") if any(part in name for name in moved)} == {
            "experts",
            "mlp.gate.",
            "w_c",
        }


def test_the_unmodified_model_trains_in_shards_too(fits: Path) -> None:
    assert len(history(fits / "mixtral unmodified")["stage2/router_loss"]) == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_low_rank_updates_leave_the_experts_and_merge_into_what_was_trained(fits: Path, family: str) -> None:
    before, after = (weights(fits, f"{family} lora", folder) for folder in ("stage1", "final"))
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name.split(".self_attn.")[-1].split(".")[0] for name in moved} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "w_c")
    }
    run, ids = run_of(fits, f"{family} lora"), torch.arange(12)[None]
    with torch.no_grad():
        adapter, final, start = (load_folder(run / name)(ids).logits for name in ("adapter", "final", "stage1"))
    torch.testing.assert_close(adapter, final, rtol=0, atol=1e-5)
    assert not torch.allclose(final, start, atol=1e-3)
