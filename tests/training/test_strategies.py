"""One config on one rank, on two with full copies and on two with shards: the same fit, also killed and resumed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.parity import ROUNDS_ALIKE
from tests.training.attempts import Attempt, run_attempts
from tests.training.test_kill_and_resume import CONFIG, ROWS, TIMED, history

from uniattn_pl.plan import LayerPlan

# thin W_c train two factors, which rounding moves further apart than the sums of all ranks' gradients otherwise do
WHOLE = CONFIG.replace(", rank: auto", "").replace("devices: 1", "devices: auto")
FSDP = "training.strategy=fsdp"
SHARDS = "training.checkpoint_format=sharded"
LORA = "training.lora.enabled=true"
RANKS = "calibration.rank=auto"
MIDDLE_OF_STAGE_1, MIDDLE_OF_STAGE_2 = "stage 1, step 4", "stage 2, in the middle of an accumulation"
BEFORE_THE_SWITCH, AFTER_THE_SWITCH = "at the switch, before the commit", "at the switch, after the commit"


ATTEMPTS = (
    Attempt("single", 1),
    Attempt("ddp", 2),
    Attempt("fsdp", 2, (FSDP,)),
    # every kill of one fit; rank 0 is also the one that writes
    Attempt("killed", 2, (FSDP, SHARDS), (1, MIDDLE_OF_STAGE_1)),
    Attempt("killed", 2, (FSDP, SHARDS), (0, BEFORE_THE_SWITCH)),
    Attempt("killed", 2, (FSDP, SHARDS), (0, AFTER_THE_SWITCH)),
    Attempt("killed", 2, (FSDP, SHARDS), (0, MIDDLE_OF_STAGE_2)),
    Attempt("killed", 2, (FSDP, SHARDS)),
    Attempt("offloaded", 2, (FSDP, "training.cpu_offload=true", "training.gradient_checkpointing=true")),
    Attempt("mixed", 2, (FSDP, "training.precision=bf16-mixed")),
    Attempt("chosen ranks", 2, (FSDP, SHARDS, RANKS), (1, MIDDLE_OF_STAGE_1)),
    Attempt("chosen ranks", 2, (FSDP, SHARDS, RANKS)),
    Attempt("lora", 1, (LORA,)),
    Attempt("sharded lora", 2, (LORA, FSDP), (1, MIDDLE_OF_STAGE_2)),
    Attempt("sharded lora", 2, (LORA, FSDP)),
)


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all attempts ran; each kill ended every rank, and everything else ended well."""
    root = tmp_path_factory.mktemp("fits")
    run_attempts(root, ATTEMPTS, config=WHOLE, rows=ROWS)
    return root


def weights(fits: Path, name: str, folder: str = "final") -> dict[str, torch.Tensor]:
    return load_file(fits / name / "runs/killed" / folder / "model.safetensors")


def digest(fits: Path, name: str) -> str:
    return hashlib.sha256((fits / name / "runs/killed/final/model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["ddp", "fsdp", "offloaded"])
def test_losses_and_weights_are_those_of_one_rank(fits: Path, name: str) -> None:
    alone, shared = history(fits / "single"), history(fits / name)
    for key in ("stage1/loss", "stage2/loss", "val/response_loss"):
        assert [step for step, _ in shared[key]] == [step for step, _ in alone[key]]
        assert [v for _, v in shared[key]] == pytest.approx([v for _, v in alone[key]], abs=1e-5)
    expected = weights(fits, "single")
    for parameter, value in weights(fits, name).items():
        assert (value - expected[parameter]).abs().max() < (1e-5 if ROUNDS_ALIKE else 3e-5), parameter


def test_a_sharded_fit_killed_in_both_stages_and_at_the_switch_ends_bit_for_bit_as_one_that_was_not(fits: Path) -> None:
    assert digest(fits, "killed") == digest(fits, "fsdp")
    whole, killed = history(fits / "fsdp"), history(fits / "killed")
    assert killed.keys() == whole.keys()
    for key in whole.keys() - TIMED:
        assert killed[key] == whole[key], key


def test_ranks_that_are_chosen_are_sharded_and_trained_on(fits: Path) -> None:
    config = json.loads((fits / "chosen ranks/runs/killed/final/config.json").read_text())
    before, after = (weights(fits, "chosen ranks", folder) for folder in ("initial", "final"))
    thin = [row for row in LayerPlan.from_dict(config["layer_plan"]).rows if row.compensation and row.compensation.thin]
    assert [row.index for row in thin] == [6, 7]
    for row in thin:
        assert row.compensation is not None
        for factor, shape in {"down": (row.compensation.thin, 32), "up": (32, row.compensation.thin)}.items():
            name = f"model.layers.{row.index}.self_attn.w_c.{factor}.weight"
            assert before[name].shape == after[name].shape == shape
            assert not torch.equal(before[name], after[name])


def test_training_moved_the_weights_by_far_more_than_the_tolerance(fits: Path) -> None:
    before, after = weights(fits, "single", "initial"), weights(fits, "single")
    assert max((after[name] - before[name]).abs().max() for name in after) > 1e-3


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights(fits: Path) -> None:
    final, exact = weights(fits, "mixed"), weights(fits, "fsdp")
    assert {weight.dtype for weight in final.values()} == {torch.float32}
    differences = [(final[name] - exact[name]).abs().max() for name in final]
    assert 1e-5 < max(differences) < 1e-2


def test_low_rank_updates_are_the_same_on_shards_and_after_a_kill(fits: Path) -> None:
    alone, shared = weights(fits, "lora"), weights(fits, "sharded lora")
    for name in alone:
        assert (alone[name] - shared[name]).abs().max() < 1e-5, name


def test_low_rank_updates_train_w_c_and_the_refitted_projections_in_full_and_are_merged(fits: Path) -> None:
    before, after = weights(fits, "lora", "stage1"), weights(fits, "lora")
    assert before.keys() == after.keys()
    ranks = {name: _rank(after[name] - before[name]) for name in after}
    # layers 6 and 7 reuse the map of layer 5: their W_o was fitted together with W_c
    for layer in (6, 7):
        assert ranks[f"model.layers.{layer}.self_attn.w_c.weight"] > 16
        assert ranks[f"model.layers.{layer}.self_attn.o_proj.weight"] > 16
        assert 0 < ranks[f"model.layers.{layer}.self_attn.v_proj.weight"] <= 16
    assert 0 < ranks["model.layers.0.self_attn.q_proj.weight"] <= 16
    assert ranks["model.layers.0.mlp.up_proj.weight"] == 0


def test_the_adapter_on_its_base_is_the_merged_model(fits: Path) -> None:
    from uniattn_pl.modeling.loading.pretrained import load_folder

    run = fits / "lora" / "runs/killed"
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        logits = [load_folder(run / name)(input_ids=tokens).logits for name in ("adapter", "final", "stage1")]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)


def _rank(difference: torch.Tensor) -> int:
    values = torch.linalg.svdvals(difference.double()) if difference.dim() == 2 else difference.abs().double()
    return int((values > 1e-7).sum())
