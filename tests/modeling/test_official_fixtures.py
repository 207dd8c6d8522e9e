"""Every family the official code was run on, as far as its recordings are here: forward, gradients, tokens, W_c.

The recordings are not part of a checkout; the Llama ones that are (test_parity.py) are a part of them.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.calibration.test_calibrate import watching
from tests.parity import ROUNDS_ALIKE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from uniattn_pl.calibration import calibrate
from uniattn_pl.calibration.solvers import LayerSample, make_solver
from uniattn_pl.modeling.conversion.convert import apply_plan, converted_copy
from uniattn_pl.plan import LayerPlan

FOLDER = Path(__file__).parents[2].parent / "shared" / "parity"
FAMILIES = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
MODES = ["materialise", "replay"]
TOLERANCE = {"eager": 1e-6 if ROUNDS_ALIKE else 2e-5, "sdpa": 2e-5}

pytestmark = pytest.mark.skipif(not FAMILIES, reason=f"the official code's recordings are not here ({FOLDER})")


@lru_cache
def recorded(family: str, name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / family / f"{name}.safetensors")


def stock(family: str, backend: str, *, soft_cap: bool = False) -> PreTrainedModel:
    """The tiny stock model; the official sdpa path drops the capping of attention logits, so ours does too."""
    fields = json.loads((FOLDER / family / "config.json").read_text())
    if not soft_cap and "attn_logit_softcapping" in fields:
        fields["attn_logit_softcapping"] = None
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(fields.pop("model_type"), **fields), attn_implementation=backend
    )
    model.load_state_dict(recorded(family, "weights"))
    return model.eval()


def plan_of(family: str, *, compensated: bool) -> LayerPlan:
    """One Superblock from the recorded begin to the top."""
    config = json.loads((FOLDER / family / "config.json").read_text())
    source, layers = config["grouping_begin_idx"], config["num_hidden_layers"]
    return LayerPlan.unmodified(layers).reuse(range(source + 1, layers), source, compensated=compensated)


def unified(family: str, fixture: str, backend: str, mode: str) -> PreTrainedModel:
    model = apply_plan(stock(family, backend), plan_of(family, compensated=fixture != "softmax"))
    model.config.reuse_mode = mode
    if fixture == "uniattn":
        for name, weight in recorded(family, "w_c").items():
            layer = name.removeprefix("layer.")
            model.get_parameter(f"model.layers.{layer}.self_attn.w_c.weight").data.copy_(weight)
    return model


def cases(*names: str) -> pytest.MarkDecorator:
    """Every family with every kernel it has, in both modes, for the given recordings."""
    kernels = [(f, b) for f in FAMILIES for b in TOLERANCE if not (f.startswith("gemma") and b == "sdpa")]
    return pytest.mark.parametrize(
        ("family", "backend", "mode", "fixture"),
        [(family, backend, mode, name) for family, backend in kernels for mode in MODES for name in names],
    )


@cases("softmax", "uniattn")
def test_forward(family: str, backend: str, mode: str, fixture: str) -> None:
    model, inputs = unified(family, fixture, backend, mode), recorded(family, "inputs")
    expected = recorded(family, fixture)
    valid = inputs["rpad_mask"].bool()
    with torch.no_grad():
        full = model(inputs["ids"], output_hidden_states=True)
        padded = model(inputs["rpad_ids"], attention_mask=inputs["rpad_mask"]).logits
    close = {"rtol": 0, "atol": TOLERANCE[backend]}
    torch.testing.assert_close(full.logits, expected["full.logits"], **close)
    torch.testing.assert_close(padded[valid], expected["rpad.logits"][valid], **close)
    # hidden_states[i + 1] is what layer i gives, but for the last one, which is normed.
    for layer in range(len(model.layer_plan.rows) - 1):
        torch.testing.assert_close(full.hidden_states[layer + 1], expected[f"full.hid.{layer}"], **close)


@cases("softmax.grads", "uniattn.grads", "uniattn.grads_detached")
def test_gradients_flow_through_the_map(family: str, backend: str, mode: str, fixture: str) -> None:
    """The detached recording is the negative control: its source queries have another gradient."""
    expected, inputs = recorded(family, fixture), recorded(family, "inputs")
    model = unified(family, fixture.split(".")[0], backend, mode).train()
    labels = inputs["rpad_ids"].masked_fill(~inputs["rpad_mask"].bool(), -100)
    loss = model(inputs["rpad_ids"], attention_mask=inputs["rpad_mask"], labels=labels).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"].item(), abs=1e-5)
    found = {name.replace("self_attn.w_c", "v2_proj"): p.grad for name, p in model.named_parameters()}
    errors = {n: ((found[n] - g).norm() / g.norm()).item() for n, g in expected.items() if n != "loss"}
    source = json.loads((FOLDER / family / "config.json").read_text())["grouping_begin_idx"]
    if fixture.endswith("detached"):
        assert errors[f"model.layers.{source}.self_attn.q_proj.weight"] > 0.3
    else:
        assert max(errors.values()) < 2e-5


@cases("softmax", "uniattn")
def test_greedy_tokens_of_a_left_padded_batch(family: str, backend: str, mode: str, fixture: str) -> None:
    model, inputs = unified(family, fixture, backend, mode), recorded(family, "inputs")
    model.generation_config.eos_token_id = None
    tokens = model.generate(
        inputs["lpad_ids"], attention_mask=inputs["lpad_mask"], max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert torch.equal(tokens, recorded(family, f"{fixture}.greedy")["nocache"])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_theorem_37_on_whole_forwards_gives_the_official_w_c(family: str) -> None:
    """Bottom-up, each layer from whole forwards of both models; the official base model ran with soft-capping."""
    original = stock(family, "eager", soft_cap=True)
    model = apply_plan(stock(family, "eager"), plan_of(family, compensated=True))
    ids = recorded(family, "init/data")["ids"]
    official = torch.from_numpy(np.load(FOLDER / family / "init" / "init_weights_sequential_new_plan.npy"))
    for layer, expected in zip(model.layer_plan.compensated, official, strict=True):
        seen: list[dict[str, torch.Tensor]] = [{}, {}]
        for watched, into in zip((original, model), seen, strict=True):
            with watching(watched, layer, into):
                watched(ids, use_cache=False)
        solver = make_solver("theorem37", 0.0)
        error = seen[0]["after"] - seen[1]["after"]
        solver.update(LayerSample(seen[1]["x"], error, None, torch.ones_like(ids, dtype=torch.bool)))
        fit = solver.solve()
        assert fit is not None
        assert (fit.w_c - expected.T).norm() < 1e-4 * expected.norm(), f"layer {layer}"
        model.get_parameter(f"model.layers.{layer}.self_attn.w_c.weight").copy_(fit.w_c)


@pytest.mark.parametrize("family", FAMILIES)
def test_streaming_sees_what_whole_forwards_see(family: str) -> None:
    """With one kind of model on both sides, the streaming pass fits the W_c of the literal procedure above."""
    original = stock(family, "eager")
    model = converted_copy(original, plan_of(family, compensated=True))
    literal = converted_copy(original, plan_of(family, compensated=True))
    ids = recorded(family, "init/data")["ids"]
    mask = torch.ones_like(ids)
    calibrate(original, model, [{"input_ids": ids, "attention_mask": mask}], [], initialiser="theorem37")
    for layer in model.layer_plan.compensated:
        seen: list[dict[str, torch.Tensor]] = [{}, {}]
        with torch.no_grad():
            for watched, into in zip((original, literal), seen, strict=True):
                with watching(watched, layer, into):
                    watched(ids, use_cache=False)
        solver = make_solver("theorem37", 0.0)
        solver.update(LayerSample(seen[1]["x"], seen[0]["after"] - seen[1]["after"], None, mask.bool()))
        fit = solver.solve()
        assert fit is not None
        literal.get_parameter(f"model.layers.{layer}.self_attn.w_c.weight").data.copy_(fit.w_c)
        found = model.get_parameter(f"model.layers.{layer}.self_attn.w_c.weight")
        assert (found - fit.w_c).norm() < 1e-3 * fit.w_c.norm()
