"""The converted model computes what the official UniAttn code computes."""

from __future__ import annotations

import pytest
import torch
from tests.parity import ROUNDS_ALIKE, recorded, uniattn_llama

TOLERANCE = 2e-5
EXACT = 1e-6  # eager attention on the kind of machine that the recordings come from
BACKENDS = ["eager", "sdpa"]
MODES = ["materialise", "replay", "auto"]


def official_w_c(fixture: str) -> dict[int, torch.Tensor] | None:
    if fixture == "softmax":
        return None
    prefix = {"uniattn": "w_c.layer", "uniattn_init": "init.w_c"}[fixture]
    return {int(layer): weight for layer, weight in recorded(prefix).items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fixture", ["softmax", "uniattn"])
def test_logits(fixture: str, backend: str, mode: str, device: str) -> None:
    model = uniattn_llama(official_w_c(fixture), backend).to(device)
    model.config.reuse_mode = mode
    inputs, expected = recorded("inputs", device), recorded(fixture, device)
    tolerance = EXACT if (backend, device) == ("eager", "cpu") and ROUNDS_ALIKE else TOLERANCE
    valid = inputs["rpad_mask"].bool()
    with torch.no_grad():
        full = model(inputs["ids"]).logits
        padded = model(inputs["rpad_ids"], attention_mask=inputs["rpad_mask"]).logits
    torch.testing.assert_close(full, expected["full.logits"], rtol=0, atol=tolerance)
    torch.testing.assert_close(padded[valid], expected["rpad.logits"][valid], rtol=0, atol=tolerance)


def test_logits_with_the_official_initialisation(device: str) -> None:
    model = uniattn_llama(official_w_c("uniattn_init"), "eager").to(device)
    with torch.no_grad():
        logits = model(recorded("inputs", device)["ids"]).logits
    torch.testing.assert_close(logits, recorded("uniattn_init", device)["full.logits"], rtol=0, atol=1e-5)


def test_unification_changes_the_base_model() -> None:
    """Guards the tests above: the fixtures differ by far more than the tolerances."""
    assert (recorded("softmax")["full.logits"] - recorded("base")["full.logits"]).abs().max() > 0.1
    assert (recorded("softmax")["full.logits"] - recorded("uniattn")["full.logits"]).abs().max() > 0.1


def relative_errors(
    fixture: str, backend: str, mode: str, device: str, expected: dict[str, torch.Tensor]
) -> dict[str, float]:
    model = uniattn_llama(official_w_c(fixture), backend).to(device).train()
    model.config.reuse_mode = mode
    inputs = recorded("inputs", device)
    labels = inputs["rpad_ids"].masked_fill(~inputs["rpad_mask"].bool(), -100)
    loss = model(inputs["rpad_ids"], attention_mask=inputs["rpad_mask"], labels=labels).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"].item(), abs=1e-5)
    gradients = {name.replace("self_attn.w_c", "v2_proj"): p.grad for name, p in model.named_parameters()}
    return {n: ((gradients[n] - g).norm() / g.norm()).item() for n, g in expected.items() if n != "loss"}


@pytest.mark.parametrize("mode", ["materialise", "replay"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fixture", ["softmax", "uniattn"])
def test_gradients_flow_through_the_shared_map(fixture: str, backend: str, mode: str, device: str) -> None:
    errors = relative_errors(fixture, backend, mode, device, recorded(f"{fixture}.grads", device))
    assert {"model.layers.4.self_attn.q_proj.weight", "model.layers.7.self_attn.v_proj.weight"} <= set(errors)
    assert max(errors.values()) < 2e-5


@pytest.mark.parametrize("mode", ["materialise", "replay"])
def test_gradients_differ_from_those_of_a_detached_map(mode: str, device: str) -> None:
    """Negative control: cutting the gradient at the map changes the source's q_proj gradient by about 80 %."""
    errors = relative_errors("uniattn", "sdpa", mode, device, recorded("uniattn.grads_detached", device))
    assert errors["model.layers.4.self_attn.q_proj.weight"] > 0.5
