"""Whole fits that learn preferences: on one rank and on two, killed and resumed, low-rank, against the original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.parity import ROUNDS_ALIKE
from tests.training.attempts import Attempt, run_attempts
from tests.training.test_kill_and_resume import CONFIG, history

from uniattn_pl.files import CACHE_VARIABLE

WHOLE = CONFIG.replace(", rank: auto", "").replace("devices: 1", "devices: auto")
BAD = ("No.", "Why?", "Ask another one.")
# 11 training rows, so that the last step of an epoch, and one of its micro batches, has fewer pairs
ROWS = "\n".join(
    json.dumps({"prompt": f"Count to {n}.", "chosen": "1 2 3 4 5"[: n + 1], "rejected": BAD[n % 3]}) for n in range(15)
)
DPO, STAGE_2 = "training.objective=dpo", "stage 2, in the middle of an accumulation"
FSDP = (DPO, "training.strategy=fsdp", "training.micro_batch_size=1")
ATTEMPTS = (
    Attempt("single", 1, (DPO,)),
    Attempt("killed", 1, (DPO,), (0, STAGE_2)),
    Attempt("killed", 1, (DPO,)),
    Attempt("ranks", 2, FSDP),
    Attempt("lora", 1, (DPO, "training.lora={enabled: true, quantization: 4bit}")),
    Attempt("original", 1, (DPO, "training.dpo={reference: original, loss_type: ipo}")),
)
SHOWN = [f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")]
SHOWN += ["logps/chosen", "logps/rejected"]


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all attempts ran; each kill ended every rank, and everything else ended well."""
    root = tmp_path_factory.mktemp("preferences")
    run_attempts(root, ATTEMPTS, config=WHOLE, rows=ROWS, environment={CACHE_VARIABLE: str(root / "cache")})
    return root


def differences(fits: Path, name: str, other: str, folder: str = "final") -> torch.Tensor:
    """Of all weights, flat."""
    ours, theirs = (load_file(fits / one / f"runs/killed/{folder}/model.safetensors") for one in (name, other))
    assert ours.keys() == theirs.keys()
    return torch.cat([(ours[key] - theirs[key]).abs().flatten() for key in theirs])


def test_the_same_is_learned_on_two_ranks_with_other_micro_batches(fits: Path) -> None:
    # AdamW's first steps turn rounding of a gradient near 0 into a step
    far = differences(fits, "ranks", "single") > (2e-5 if ROUNDS_ALIKE else 6e-5)
    assert int(far.sum()) < 1e-4 * len(far)
    ours, theirs = history(fits / "ranks"), history(fits / "single")
    for metric in ("stage2/loss", "stage2/rewards/margins", "val/dpo_loss"):
        assert [value for _, value in ours[metric]] == pytest.approx([value for _, value in theirs[metric]], abs=1e-4)


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(fits: Path) -> None:
    assert differences(fits, "killed", "single").max() == 0
    ours, theirs = history(fits / "killed"), history(fits / "single")
    assert all(ours[f"stage2/{name}"] == theirs[f"stage2/{name}"] for name in ("loss", *SHOWN))


def test_every_step_and_what_was_held_out_is_tracked_by_trls_names(fits: Path) -> None:
    tracked = history(fits / "single")
    steps = [step for step, _ in tracked["stage2/loss"]]
    for name in SHOWN:
        assert [step for step, _ in tracked[f"stage2/{name}"]] == steps
        assert f"stage1/{name}" not in tracked, "stage 1 learns the chosen responses"
    chosen, rejected, margins = ([value for _, value in tracked[f"stage2/{name}"]] for name in SHOWN[:3])
    assert margins == pytest.approx([good - bad for good, bad in zip(chosen, rejected, strict=True)], abs=1e-5)
    assert [step for step, _ in tracked["val/dpo_loss"]] == [steps[2], steps[-1]], "behind each epoch"
    ((_, accuracy),) = tracked["val/rewards/accuracies"][-1:]
    assert accuracy == 1.0


@pytest.mark.parametrize("name", ["single", "lora"])
def test_rewards_are_counted_from_what_stage_2_begins_with(fits: Path, name: str) -> None:
    tracked = history(fits / name)
    (_, loss), *_, (_, last) = tracked["stage2/loss"]
    assert loss == pytest.approx(0.693147, abs=1e-4)
    assert last < 0.6
    assert abs(tracked["stage2/rewards/chosen"][0][1]) < 1e-4


def test_rewards_can_be_counted_from_the_original(fits: Path) -> None:
    assert differences(fits, "original", "single", "stage1").max() == 0
    assert abs(history(fits / "original")["stage2/rewards/chosen"][0][1]) > 1e-3
