"""Fits of two ranks by every optimizer, on 4 bits and on shards, that leave their best weights; also after a kill."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.attempts import Attempt, run_attempts
from tests.training.test_kill_and_resume import ROWS, TIMED

CONFIG = """
name: killed
model: {source: tiny-llama, dtype: float32}
architecture: {name: uniattn, superblock_size: 3, num_superblocks: 1}
data: {source: rows.jsonl, validation_size: 4}
calibration: {num_samples: 4, held_out_samples: 2}
training:
  batch_size: 4
  micro_batch_size: 1
  checkpoint_every_steps: 3
  eval_every_steps: 2
  keep: best
  stage1: {max_steps: 1}
  stage2: {learning_rate: 3.0e-3, max_epochs: 2, schedule: constant}
  early_stop: {monitor: held_out_loss, stages: [2], patience: 2}
trainer: {accelerator: cpu, devices: auto}
evaluation: {num_samples: 4, texts: 0}
"""
# what is learned from the rows is wrong here, the more the longer it is learned
OTHERS = "\n".join(json.dumps({"instruction": f"Say {n}.", "input": "", "output": "zebra jaguar"}) for n in range(4))
WORSENS = ("data.validation_source=../others.jsonl", "training.early_stop.patience=1")
FSDP, SHARDS = "training.strategy=fsdp", "training.checkpoint_format=sharded"
EIGHT_BITS = ("training.optimizer=adamw_8bit",)
MUON = ("training.optimizer=muon", "training.stage2.w_c_learning_rate=0.001", FSDP, SHARDS, *WORSENS)
FOUR_BITS = (
    *("training.lora.enabled=true", "training.lora.dora=true", "training.lora.quantization=4bit"),
    *("training.stage2.learning_rate=3.0e-4", *WORSENS),
)
# Steps 2, 4 and 6 are measured, 3 and 6 saved: the best so far is in a checkpoint, or, where that of step 4 is better
# (eight bits), not yet.
BEHIND_3, BEHIND_4 = "stage 2, at the checkpoint at the end of an epoch", "stage 2, in the middle of an accumulation"
ATTEMPTS = (
    Attempt("eight bits", 2, EIGHT_BITS),
    Attempt("eight bits, killed", 2, EIGHT_BITS, (0, BEHIND_4)),
    Attempt("eight bits, killed", 2, EIGHT_BITS),
    Attempt("muon", 2, MUON),
    Attempt("muon, killed", 2, MUON, (1, BEHIND_3)),
    Attempt("muon, killed", 2, MUON),
    Attempt("four bits", 1, FOUR_BITS),
    Attempt("four bits, killed", 2, (*FOUR_BITS, FSDP), (1, BEHIND_3)),
    Attempt("four bits, killed", 2, (*FOUR_BITS, FSDP)),
)
KEPT = {"eight bits": (6, 6, False), "muon": (2, 4, True), "four bits": (2, 4, True)}


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all attempts ran."""
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")
    root = tmp_path_factory.mktemp("fits")
    (root / "others.jsonl").write_text(OTHERS, encoding="utf-8")
    run_attempts(root, ATTEMPTS, config=CONFIG, rows=ROWS)
    return root


def run_of(fits: Path, name: str) -> Path:
    return fits / name / "runs/killed"


def results(fits: Path, name: str, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_of(fits, name) / "manifest.json").read_text())["results"][stage]
    return found


def history(fits: Path, name: str) -> dict[str, list[tuple[int, float]]]:
    """All points of all curves, in the order in which they were written down."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in (run_of(fits, name) / "tracking/journal.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["op"] == "metric" and entry["key"] not in TIMED:
            curves.setdefault(entry["key"], []).append((entry["step"], entry["value"]))
    return curves


@pytest.mark.parametrize("name", ["eight bits", "muon"])
def test_a_killed_fit_ends_bit_for_bit_as_one_that_was_not(fits: Path, name: str) -> None:
    for folder in ("stage1", "final"):
        digests = {
            hashlib.sha256((run_of(fits, one) / folder / "model.safetensors").read_bytes()).hexdigest()
            for one in (name, f"{name}, killed")
        }
        assert len(digests) == 1, folder
    assert history(fits, name) == history(fits, f"{name}, killed")


def test_updates_of_four_bits_are_the_same_on_shards_and_after_a_kill(fits: Path) -> None:
    alone, shared = (
        load_file(run_of(fits, one) / "final/model.safetensors") for one in ("four bits", "four bits, killed")
    )
    # calibration sums over ranks in another order
    assert max((alone[name] - shared[name]).abs().max() for name in alone) < 3e-5


def test_the_adapter_on_its_rounded_base_is_the_merged_model(fits: Path) -> None:
    from uniattn_pl.modeling.loading.pretrained import load_folder

    run = run_of(fits, "four bits, killed")
    joined, final = (load_folder(run / name).state_dict() for name in ("adapter", "final"))
    assert max((joined[name] - final[name]).abs().max() for name in final) < 1e-5
    before, adapter = (
        load_file(run / name) for name in ("stage1/model.safetensors", "adapter/adapter_model.safetensors")
    )
    up, query = "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj"
    # nothing trains up_proj: it is what 4 bits leave of it
    assert torch.equal(final[up], rounded(before[up]))
    assert not torch.equal(final[up], before[up])
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight"):
        assert torch.equal(final[name], before[name]), name
    # the rows of a merged weight have the lengths that were trained
    lengths = adapter[f"base_model.model.{query}.lora_magnitude_vector"]
    torch.testing.assert_close(final[f"{query}.weight"].norm(dim=1), lengths, rtol=1e-5, atol=1e-6)
    assert (lengths - rounded(before[f"{query}.weight"]).norm(dim=1)).abs().max() > 1e-4
    # W_o was fitted together with W_c: both train in full, from what they were; 4 bits would have moved them further
    for name in ("o_proj", "w_c"):
        weight = f"model.layers.7.self_attn.{name}.weight"
        assert 0 < (final[weight] - before[weight]).abs().max() < 2e-3, name


def rounded(weight: torch.Tensor) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    whole: torch.Tensor = dequantize_4bit(packed, state)
    return whole


@pytest.mark.parametrize("name", sorted({attempt.name for attempt in ATTEMPTS}))
def test_a_stage_leaves_the_weights_of_its_lowest_held_out_loss(fits: Path, name: str) -> None:
    curve = [(step - 1, loss) for step, loss in history(fits, name)["val/response_loss"] if step > 1]
    stage = results(fits, name, "stage2")
    kept, steps, stopped = KEPT[name.removesuffix(", killed")]
    summary = stage["stage"]
    assert [summary[key] for key in ("kept_step", "steps", "stopped_early")] == [kept, steps, stopped]
    epochs = [3] if name.startswith("eight") else []  # 12 rows train, otherwise all 16
    assert [step for step, _ in curve] == sorted([*range(2, steps + 1, 2), *epochs])
    assert min(curve, key=lambda point: point[1])[0] == kept
    # measured again, of the files
    assert stage["milestones"]["stage2"]["response_loss"] == pytest.approx(dict(curve)[kept], abs=1e-5)
    assert (
        f"stage2 ends with the weights of step {kept} of {steps}, "
        in (run_of(fits, name) / "final_table.txt").read_text()
    )
    assert not (run_of(fits, name) / "checkpoints/stage2").exists()
