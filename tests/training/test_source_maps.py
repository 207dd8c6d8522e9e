"""Sources whose maps are trained for their readers: against whole maps of stock models, and however a step is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainers import fit
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from uniattn_pl.cli import main
from uniattn_pl.config.sections.distillation_section import DistillationConfig, TermWeights
from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.losses import map_divergence
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.modeling.loading.pretrained import load_tokenizer
from uniattn_pl.plan import LayerPlan
from uniattn_pl.training.lightning_module import PostTrainingModule
from uniattn_pl.training.objectives.distillation_objective import DistillationObjective
from uniattn_pl.training.objectives.objective import MicroLoss
from uniattn_pl.training.objectives.teacher import Teacher

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
OPTIONS = StageConfig(learning_rate=0.01, schedule="constant", warmup_ratio=0.0)
MAPS = TermWeights(labels=0, logits=0, maps=2)
# Layers 2 and 3 read the map of 1, by other heads in 3; layer 5 that of 4.
PLAN = (
    LayerPlan.unmodified(6)
    .reuse([2, 3], 1, compensated=True)
    .reuse([5], 4, compensated=True)
    .align_heads({3: [1, 0, 3, 3]})
)
SOURCES = (1, 4)


def original(family: str = "llama") -> PreTrainedModel:
    torch.manual_seed(1)
    if family == "gemma2":  # every other layer sees few tokens, scores are capped
        caps = {"attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 2, "sliding_window": 4}
        model: Any = Gemma2ForCausalLM(Gemma2Config(**SIZES, **caps, attn_implementation="eager"))
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    for name, parameter in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.data *= 20  # maps that are not flat
    return model


def student(of: PreTrainedModel) -> PreTrainedModel:
    """Its own weights, somewhat off those of the original."""
    gemma = of.config.model_type == "gemma2"  # whose layer 4 sees less than layer 5
    made = converted_copy(type(of)(of.config), PLAN.drop([5], compensated=False) if gemma else PLAN)
    made.load_state_dict(of.state_dict(), strict=False)
    torch.manual_seed(2)
    for parameter in made.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return made


def padded(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 32, (2, 11), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, 7 - seed % 3 :] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    labels[:, : 3 + seed % 2] = -100
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def packed() -> dict[str, Tensor]:
    """The rows of `padded` in one sequence, and padding behind them."""
    batch, length = padded(), [11, 7]
    rows = {
        key: torch.cat([batch[key][i, :n] for i, n in enumerate(length)] + [torch.zeros(3).long()]) for key in batch
    }
    positions = torch.cat([torch.arange(n) for n in (*length, 3)])
    made = {"input_ids": rows["input_ids"], "labels": rows["labels"], "position_ids": positions}
    made["labels"][[11, 18, 19, 20]] = -100
    return {**{key: tensor[None] for key, tensor in made.items()}, "row_mask": rows["attention_mask"][None]}


def objective(of: PreTrainedModel, weights: TermWeights = MAPS, tokens: str = "all") -> DistillationObjective:
    return DistillationObjective(DistillationConfig("x", tokens=tokens), weights, Teacher(lambda: of))


def plain(learner: PreTrainedModel, of: PreTrainedModel, tokens: str) -> Tensor:
    """Mean over the distilled tokens of `padded`, by the formula on whole float64 maps, as the models return them."""
    batch, total, count = padded(), torch.zeros((), dtype=torch.float64), 0
    for model in (learner, of):
        model.double().set_attn_implementation("eager")
    for row, length in enumerate((11, 7)):
        ids = batch["input_ids"][row : row + 1, :length]
        with torch.no_grad():
            theirs = of(input_ids=ids, output_attentions=True, use_cache=False).attentions
        ours = learner(input_ids=ids, output_attentions=True, use_cache=False).attentions
        wanted = torch.ones(length - 1, dtype=torch.bool)
        if tokens == "response":
            wanted = batch["labels"][row, 1:length] != -100
        for reader in learner.layer_plan.reusing:
            # a reader's map is the one it reads
            p, q = (maps[reader][0, :, :-1][:, wanted] for maps in (theirs, ours))  # [H, tokens, length]
            seen = p > 0
            total = total + (p[seen] * (p[seen].log() - q[seen].log())).sum() / len(p)
        count += int(wanted.sum())
    return total / count


@pytest.mark.parametrize("tokens", ["all", "response"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_the_term_is_the_formula_on_whole_maps(
    family: str, layout: str, tokens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_divergence, "ROWS", 4)
    of = original(family)
    learner = student(of).train()
    batch = {"padded": padded, "packed": packed}[layout]()
    found, term = loss_of(learner, of, batch, tokens)
    (found.total / found.tokens).backward()
    gradients = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    term.end()
    assert learner.config.reuse_mode == "auto"

    learner.zero_grad()
    expected = plain(learner, of, tokens)
    (MAPS.maps * expected).backward()
    value = float(expected.detach())
    assert value > 0.01
    assert term.terms == ("label_loss", "map_divergence")
    assert float(found.sums[1] / found.counts[1]) == pytest.approx(value, rel=1e-4)
    assert float(found.total.detach() / found.tokens) == pytest.approx(MAPS.maps * value, rel=1e-4)
    for name, parameter in learner.named_parameters():
        if parameter.grad is not None:
            difference = (gradients[name] - parameter.grad).norm()
            assert difference <= 1e-3 * parameter.grad.norm() + 1e-6, name


def loss_of(
    learner: PreTrainedModel, of: PreTrainedModel, batch: dict[str, Tensor], tokens: str = "all"
) -> tuple[MicroLoss, DistillationObjective]:
    term = objective(of, tokens=tokens)
    term.begin(learner, None)
    return term.loss(learner, {**batch, **term.tokens_of(batch)}), term


def test_a_teacher_may_have_a_plan_of_its_own() -> None:
    plan = LayerPlan.unmodified(6).drop([0], compensated=False).share_kv([3], 2, compensated=False)
    of = converted_copy(original(), plan)
    learner = student(original()).train()
    found, _ = loss_of(learner, of, padded())
    expected = plain(learner, of, "all").detach()
    assert float(found.sums[1] / found.counts[1]) == pytest.approx(float(expected), rel=1e-4)


def module(weights: TermWeights = MAPS, *, stage: int = 1, family: str = "llama") -> PostTrainingModule:
    of = original(family)
    return PostTrainingModule(
        student(of), stage=stage, options=OPTIONS, objective=objective(of, weights), max_grad_norm=None
    )


def state(found: PostTrainingModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in found.hosted.named_parameters()}


@pytest.mark.parametrize(("family", "norms"), [("llama", ()), ("qwen3", ("q_norm", "k_norm"))])
def test_stage_1_trains_queries_and_keys_of_sources_beside_w_c(
    family: str, norms: tuple[str, ...], tmp_path: Path
) -> None:
    found = module(family=family)
    start, losses = state(found), []
    found.on_train_batch_end = lambda *_: losses.append(float(found.step_loss))  # type: ignore[method-assign, arg-type]
    fit(found, [padded()] * 12, tmp_path, steps=12)
    assert losses[-1] < 0.7 * losses[0]
    own = {f"model.layers.{i}.self_attn.{name}.weight" for i in SOURCES for name in ("q_proj", "k_proj", *norms)}
    w_c = {f"model.layers.{i}.self_attn.w_c.weight" for i in PLAN.compensated}
    assert {name for name, p in found.hosted.named_parameters() if p.requires_grad} == own | w_c
    changed = {name for name, tensor in state(found).items() if not torch.equal(tensor, start[name])}
    assert changed == (own | w_c) - {"model.layers.5.self_attn.w_c.weight"}, "no source lies above that one"


ALL = TermWeights(labels=0.5, logits=1, maps=0.5)


@pytest.mark.parametrize("stage", [1, 2])
def test_micro_batches_and_gradient_checkpointing_change_nothing(stage: int, tmp_path: Path) -> None:
    rows = [{key: tensor[i : i + 1] for key, tensor in padded(seed).items()} for seed in (0, 1) for i in (0, 1)]
    together = [{key: torch.cat([row[key] for row in rows]) for key in rows[0]}]
    whole, parts, recomputed = (module(ALL, stage=stage) for _ in range(3))
    start = state(whole)
    fit(whole, together * 2, tmp_path / "whole", steps=2)
    fit(parts, rows * 2, tmp_path / "parts", steps=2, accumulate_grad_batches=4)
    recomputed.hosted.activation_checkpointing_enable()
    fit(recomputed, together * 2, tmp_path / "recomputed", steps=2)
    for name, tensor in state(whole).items():
        for other in (parts, recomputed):
            torch.testing.assert_close(
                state(other)[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
        if "layers.1.self_attn.q_proj" in name:
            assert (tensor - start[name]).abs().max() > 1e-2


@pytest.mark.parametrize(("kernel", "mode"), [("eager", "auto"), ("sdpa", "materialise")])
def test_sources_that_would_keep_their_maps_can_be_recomputed(kernel: str, mode: str, tmp_path: Path) -> None:
    found = module(ALL)
    found.hosted.set_attn_implementation(kernel)
    found.hosted.config.reuse_mode = mode
    found.hosted.activation_checkpointing_enable()
    fit(found, [padded()], tmp_path, steps=1)
    assert found.hosted.config.reuse_mode == mode
    other = module(ALL)
    fit(other, [padded()], tmp_path, steps=1)
    for name, tensor in state(other).items():
        assert (state(found)[name] - tensor).abs().max() < 1e-4, name


def test_a_family_whose_queries_are_rows_of_one_projection_is_refused_for_stage_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer("tiny-llama")
    sizes = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    Phi3ForCausalLM(Phi3Config(**sizes, pad_token_id=0, eos_token_id=1)).save_pretrained("phi3")
    tokenizer.save_pretrained("phi3")
    plan = "architecture: {name: uniattn, superblock_size: 2, num_superblocks: 1}"
    Path("a.yaml").write_text(f"name: a\nmodel: {{source: phi3}}\ndata: {{validation_size: 8}}\n{plan}\n")
    command = ["fit", "--config", "a.yaml", "--dry-run", "training.distillation.teacher=original"]
    assert main([*command, "training.distillation.stage1.maps=1"]) == 2
    assert "'phi3' makes them and the values by one projection (qkv_proj)" in capsys.readouterr().err
    assert main([*command, "training.distillation.stage2.maps=1"]) == 0
