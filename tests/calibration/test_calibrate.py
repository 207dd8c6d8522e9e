"""Calibration: the official numbers, equality with re-running the model per layer, and what the report says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tests.parity import recorded, stock_llama, uniattn_plan
from torch import nn
from transformers import PreTrainedModel

from uniattn_pl.calibration import CalibrationReport, calibrate
from uniattn_pl.calibration.solvers import make_solver
from uniattn_pl.calibration.stream_store import TensorStore
from uniattn_pl.config.sections.calibration_section import INITIALISERS
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan
from uniattn_pl.training.callbacks.compensation_init import CompensationInit

Batch = dict[str, torch.Tensor]
UNMODIFIED = LayerPlan.unmodified(8)
PLANS = {
    "reuse": uniattn_plan(compensated=True),
    "drop": UNMODIFIED.drop([2, 6], compensated=True),
    "share_kv": UNMODIFIED.share_kv([3, 6], 1, compensated=True),
    "mixed": UNMODIFIED.reuse([2, 4], 1, compensated=True)
    .share_kv([5], 3, compensated=False)
    .drop([6], compensated=True),
}
RIDGE = 1e-2


def batches(*, padded: bool = False) -> list[Batch]:
    """The 24 recorded sequences of 96 tokens in 4 batches; padded: of lengths 40 to 96, masked."""
    ids = recorded("init")["ids"]
    mask = torch.ones_like(ids)
    if padded:
        lengths = torch.linspace(40, 96, len(ids)).long()
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return [{"input_ids": i, "attention_mask": m} for i, m in zip(ids.split(6), mask.split(6), strict=True)]


def run(
    plan: LayerPlan, initialiser: str, data: list[Batch], **options: int
) -> tuple[PreTrainedModel, CalibrationReport]:
    original = stock_llama()
    model = converted_copy(original, plan)
    return model, calibrate(original, model, data[:3], data[3:], initialiser=initialiser, ridge=RIDGE, **options)


def w_c(model: PreTrainedModel, layer: int) -> torch.Tensor:
    return model.get_parameter(f"model.layers.{layer}.self_attn.w_c.weight")


def test_theorem37_gives_the_official_weights() -> None:
    original = stock_llama("eager")
    model = converted_copy(original, PLANS["reuse"])
    calibrate(original, model, batches(), [], initialiser="theorem37")
    for layer, official in recorded("init.w_c").items():
        relative = (w_c(model, int(layer)) - official).norm() / official.norm()
        assert relative < 1e-4, f"layer {layer}"


@contextmanager
def watching(model: PreTrainedModel, layer: int, seen: dict[str, torch.Tensor]) -> Iterator[None]:
    """Write down, in an ordinary forward, what enters one layer's attention, W_o and feed-forward norm."""

    def keep(name: str, module: nn.Module) -> object:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
            seen[name] = args[0] if args else kwargs["hidden_states"]

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    block = model.model.layers[layer]
    handles = [keep("x", block.self_attn), keep("after", block.post_attention_layernorm)]
    if hasattr(block.self_attn, "o_proj"):
        handles.append(keep("heads", block.self_attn.o_proj))
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def refit_by_running_both_models_per_layer(plan: LayerPlan, data: list[Batch], *, joint: bool) -> PreTrainedModel:
    """Paper Algorithm 1, read literally: whole forwards of both models for every compensated layer."""
    original = stock_llama()
    model = converted_copy(original, plan)
    for layer in plan.compensated:
        features, errors = [], []
        for batch in data:
            target: dict[str, torch.Tensor] = {}
            seen: dict[str, torch.Tensor] = {}
            with watching(original, layer, target):
                original(**batch, use_cache=False)
            with watching(model, layer, seen):
                model(**batch, use_cache=False)
            parts = [seen["x"]] + ([seen["heads"]] if joint and "heads" in seen else [])
            mask = batch["attention_mask"].bool()
            features.append(torch.cat(parts, dim=-1)[mask].double())
            errors.append((target["after"] - seen["after"])[mask].double())
        x, error = torch.cat(features), torch.cat(errors)
        gram = x.T @ x
        width = seen["x"].shape[-1]
        ridge = torch.cat([block.mean().expand(len(block)) * RIDGE for block in gram.diagonal().split(width)])
        solution = torch.linalg.solve(gram + ridge.diag(), x.T @ error).float()
        attention = model.model.layers[layer].self_attn
        attention.w_c.weight.copy_(solution[:width].T)
        if len(solution) > width:
            attention.o_proj.weight = nn.Parameter(attention.o_proj.weight + solution[width:].T)
    return model


@pytest.mark.parametrize("initialiser", ["least_squares", "joint_least_squares"])
@pytest.mark.parametrize("name", list(PLANS))
def test_streaming_equals_rerunning_the_model_per_layer(name: str, initialiser: str) -> None:
    plan, data = PLANS[name], batches(padded=True)
    streamed, _ = run(plan, initialiser, data)
    literal = refit_by_running_both_models_per_layer(plan, data[:3], joint=initialiser == "joint_least_squares")
    for parameter, expected in literal.state_dict().items():
        found = streamed.state_dict()[parameter]
        assert (found - expected).norm() <= 1e-5 * expected.norm(), parameter
    assert all(w_c(streamed, layer).any() for layer in plan.compensated)


@pytest.mark.parametrize("initialiser", INITIALISERS)
@pytest.mark.parametrize("name", list(PLANS))
def test_every_initialiser_works_for_every_kind_of_layer(name: str, initialiser: str) -> None:
    model, report = run(PLANS[name], initialiser, batches(padded=True))
    assert [row.layer for row in report.rows] == list(PLANS[name].compensated)
    assert all(w_c(model, layer).any() == (initialiser != "zero") for layer in PLANS[name].compensated)
    assert report.tokens == sum(int(b["attention_mask"].sum()) for b in batches(padded=True)[:3])
    if initialiser == "zero":
        assert report.error_after == pytest.approx(report.error_before)


def test_the_report_measures_held_out_error_as_an_ordinary_forward_does() -> None:
    data = batches(padded=True)
    model, report = run(PLANS["reuse"], "joint_least_squares", data)
    original, top = stock_llama(), 7
    target: dict[str, torch.Tensor] = {}
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad(), watching(original, top, target), watching(model, top, seen):
        original(**data[3], use_cache=False)
        model(**data[3], use_cache=False)
    error = (target["after"] - seen["after"]).norm(dim=-1)[data[3]["attention_mask"].bool()].mean().item()
    assert report.rows[-1].after == pytest.approx(error, rel=1e-5)
    assert report.error_after < report.error_before


def test_padding_does_not_count() -> None:
    data = batches(padded=True)
    changed = [{**b, "input_ids": b["input_ids"].where(b["attention_mask"].bool(), torch.tensor(9))} for b in data]
    for initialiser in ("least_squares", "theorem37"):
        first, _ = run(PLANS["reuse"], initialiser, data)
        second, _ = run(PLANS["reuse"], initialiser, changed)
        torch.testing.assert_close(w_c(first, 7), w_c(second, 7), rtol=1e-5, atol=1e-6)


def test_the_original_is_untouched_and_calibrating_twice_gives_the_same() -> None:
    original, data = stock_llama(), batches()
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    model = converted_copy(original, PLANS["reuse"])
    calibrate(original, model, data, [], initialiser="least_squares")
    first = w_c(model, 7).clone()
    calibrate(original, model, data, [], initialiser="least_squares")
    assert torch.equal(w_c(model, 7), first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())
    assert model.config.reuse_mode == "auto"


def test_spilling_to_disk_changes_nothing() -> None:
    data = batches()
    memory, _ = run(PLANS["mixed"], "joint_least_squares", data, memory_limit_bytes=2**30)
    disk, _ = run(PLANS["mixed"], "joint_least_squares", data, memory_limit_bytes=0)
    assert all(torch.equal(a, b) for a, b in zip(memory.parameters(), disk.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_store_keeps_to_its_limit_and_returns_what_it_was_given(dtype: torch.dtype) -> None:
    tensors = [torch.randn(3, 5).to(dtype) for _ in range(6)]
    with TensorStore(memory_limit_bytes=2 * tensors[0].nbytes) as store:
        for index, tensor in enumerate(tensors):
            store.put("stream", index, tensor)
            assert store.held_bytes <= store.memory_limit_bytes
        assert store.spilled_bytes == 4 * tensors[0].nbytes
        assert all(torch.equal(store.get("stream", i), tensor) for i, tensor in enumerate(tensors))
        store.drop("stream")
        assert store.held_bytes == 0
        with pytest.raises(KeyError):
            store.get("stream", 0)


def test_progress_reaches_its_total() -> None:
    calls: list[tuple[int, int, str]] = []
    original = stock_llama()
    model = converted_copy(original, PLANS["mixed"])
    calibrate(original, model, batches(), [], progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == list(range(1, calls[-1][1] + 1))


@pytest.mark.parametrize("plan", [UNMODIFIED, uniattn_plan(compensated=False)], ids=["unmodified", "uncompensated"])
def test_a_model_without_a_compensation_is_refused_with_the_way_out(plan: LayerPlan) -> None:
    original = stock_llama()
    model = converted_copy(original, plan)
    with pytest.raises(UserError, match=r"no compensated layer.*compensation=true"):
        calibrate(original, model, batches(), [])
    with pytest.raises(UserError, match="no compensated layer"):
        CompensationInit(original, batches(), []).initialise(model)


def test_the_converted_model_is_not_its_own_original() -> None:
    model = converted_copy(stock_llama(), PLANS["reuse"])
    with pytest.raises(UserError, match="the original is the converted model itself"):
        calibrate(model, model, batches(), [])
    with pytest.raises(UserError, match="the original is a converted model, too"):
        calibrate(converted_copy(stock_llama(), PLANS["share_kv"]), model, batches(), [])


def test_an_unknown_initialiser_is_named() -> None:
    with pytest.raises(ValueError, match="unknown initialiser 'magic'"):
        make_solver("magic", RIDGE)
