"""The optimizers beside torch's own, by hand; which rate is whose, and what each keeps of a weight."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.shapes import toy_shape
from tests.trainers import fit
from tests.training.test_callbacks import Recorder
from tests.training.test_module import batches, converted
from torch import nn

from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.plan import Experts, LayerPlan
from uniattn_pl.plan.training_memory import training_memory
from uniattn_pl.training.callbacks.stage_freezing import freeze_for_stage
from uniattn_pl.training.callbacks.step_metrics import StepMetrics
from uniattn_pl.training.lightning_module import PostTrainingModule
from uniattn_pl.training.optimizers import build_optimizer

OPTIONS = StageConfig(learning_rate=0.01, weight_decay=0.1, w_c_learning_rate=0.002)


class Tiny(nn.Module):
    """Every kind of parameter, tables large enough for states of 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(80, 64)
        self.up, self.w_c, self.norm = nn.Linear(64, 80), nn.Linear(80, 64, bias=False), nn.LayerNorm(64)
        self.attention = nn.ModuleDict({"w_c": nn.Linear(64, 64, bias=False)})
        self.head = nn.Linear(64, 80, bias=False)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.w_c(self.up(self.embedding(ids)).relu())
        return self.head(self.norm(hidden + self.attention["w_c"](hidden))).square().mean()


TABLES, VECTORS = ("embedding.weight", "head.weight"), ("up.bias", "norm.weight", "norm.bias")
OF_W_C = "attention.w_c.weight"


def steps(model: Tiny, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    for seed in range(3):
        model(torch.randint(0, 80, (4, 8), generator=torch.Generator().manual_seed(seed))).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return dict(model.named_parameters())


def by_hand(model: Tiny, name: str) -> list[torch.optim.Optimizer]:
    """One of the library's own optimizers for each kind of parameter and each rate."""
    matrices = ("up.weight", "w_c.weight", OF_W_C)
    others = (*TABLES, *VECTORS)
    decay = {"weight_decay": 0.1}
    fused: dict[str, Any] = {**decay, "fused": True}
    own = {"adamw": torch.optim.AdamW, "muon": torch.optim.Muon}
    options: dict[str, Any] = {**decay, "adjust_lr_fn": "match_rms_adamw"} if name == "muon" else fused
    kinds: list[tuple[Any, tuple[str, ...], dict[str, Any]]]
    if name == "adamw_8bit":
        import bitsandbytes

        wide = {**decay, "optim_bits": 32}
        kinds = [(bitsandbytes.optim.AdamW8bit, (*matrices, *VECTORS), decay), (bitsandbytes.optim.AdamW, TABLES, wide)]
    else:
        kinds = [(own[name], matrices, options), (torch.optim.AdamW, others, fused)]
    found: list[torch.optim.Optimizer] = []
    for kind, names, settings in kinds:
        for rate, of_w_c in ((0.01, False), (0.002, True)):
            parameters = [model.get_parameter(one) for one in names if (one == OF_W_C) == of_w_c]
            found += [kind(parameters, lr=rate, **settings)] if parameters else []
    return found


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "muon"])
def test_it_updates_each_kind_of_parameter_as_the_libraries_own(name: str) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")
    model, expected = Tiny(), Tiny()
    before = copy.deepcopy(dict(model.named_parameters()))
    found = steps(model, [build_optimizer(model, OPTIONS, name)])
    for parameter, value in steps(expected, by_hand(expected, name)).items():
        torch.testing.assert_close(found[parameter], value, rtol=1e-6, atol=1e-7)
        assert not torch.equal(value, before[parameter])


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "muon"])
def test_a_saved_state_goes_on_bit_for_bit(name: str) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")
    model = Tiny()
    optimizer = build_optimizer(model, OPTIONS, name)
    steps(model, [optimizer])
    other = copy.deepcopy(model)
    resumed = build_optimizer(other, OPTIONS, name)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    expected = steps(model, [optimizer])
    for parameter, value in steps(other, [resumed]).items():
        assert torch.equal(value, expected[parameter]), parameter


def test_the_rate_of_w_c_is_scheduled_and_logged_beside_the_other(tmp_path: Path) -> None:
    logger, options = Recorder(), StageConfig(learning_rate=1e-3, w_c_learning_rate=0.0, schedule="linear")
    module = PostTrainingModule(converted(), stage=2, options=options, optimizer="muon")
    before = {name: parameter.detach().clone() for name, parameter in module.hosted.named_parameters()}
    fit(module, batches(3), tmp_path, steps=3, callbacks=[StepMetrics("train/")], logger=logger)
    rates = [value for _, key, value in logger.points if key == "train/learning_rate"]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4])
    assert [value for _, key, value in logger.points if key == "train/w_c_learning_rate"] == [0.0] * 3
    moved = {name for name, parameter in module.hosted.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if ".w_c." not in name}


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "muon"])
@pytest.mark.parametrize("stage", [1, 2])
def test_the_plan_knows_the_size_of_its_states(name: str, stage: int) -> None:
    from tests.plan.test_memory import llama

    from uniattn_pl import apply_architecture

    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")
    model = apply_architecture(llama(), "uniattn", superblock_size=3, num_superblocks=2)
    freeze_for_stage(model, stage)
    optimizer = build_optimizer(model, StageConfig(), name)
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for key, value in state.items() if not key.startswith("qmap")]
    kept = sum(state.nbytes for state in states if isinstance(state, torch.Tensor) and state.numel() > 1)
    sizes: dict[str, Any] = {"micro_batch_size": 1, "length": 1, "weight_bytes": 4, "activation_bytes": 4}
    plan: LayerPlan = model.layer_plan  # type: ignore[assignment]
    estimate = training_memory(plan, shape_of(model.config), stage=stage, optimizer=name, **sizes).optimizer
    # W_k and W_v are too small here for states of 8 bits
    assert kept == pytest.approx(estimate, rel=0.15 if (name, stage) == ("adamw_8bit", 2) else 0.01)


def test_experts_have_two_states_by_every_optimizer() -> None:
    routed = toy_shape(4)
    routed = replace(routed, layers=tuple(replace(layer, experts=Experts(8, 2, 192)) for layer in routed.layers))
    plan = LayerPlan.unmodified(4).reuse([3], 2, compensated=True)
    for name, of_expert in (("adamw", 2 * 4), ("muon", 2 * 4), ("adamw_8bit", 2 * (1 + 4 / 256))):
        without, with_experts = (
            training_memory(
                *(plan, shape),
                stage=2,
                micro_batch_size=1,
                length=1,
                weight_bytes=4,
                activation_bytes=4,
                optimizer=name,
            ).optimizer
            for shape in (toy_shape(4), routed)
        )
        assert with_experts - without == 4 * 8 * 192 * of_expert
