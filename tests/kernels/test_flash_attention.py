"""FlashAttention as a back end, with stand-ins for its packages that compute plainly (fixtures/flash_stand_in)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.calibration.test_calibrate import batches
from tests.parity import stock_llama, uniattn_plan
from tests.tiny_models import converted, plan_of, stock, tokens
from transformers import PreTrainedModel, modeling_flash_attention_utils
from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX as MATRIX
from transformers.utils import import_utils

from uniattn_pl.calibration import calibrate
from uniattn_pl.calibration.maps import map_rows
from uniattn_pl.errors import UserError
from uniattn_pl.inference.backends import measured_backends
from uniattn_pl.inference.benchmark import Setting, run_setting, subjects_of
from uniattn_pl.inference.prefill import prefill
from uniattn_pl.kernels.kernel_presence import check_kernel
from uniattn_pl.kernels.map_handles import ReplayedMap
from uniattn_pl.modeling.caches.h2o_cache import H2OCache
from uniattn_pl.modeling.conversion.convert import converted_copy, unmodified_copy
from uniattn_pl.modeling.loading.pretrained import load_folder, load_model

FOLDER = Path(__file__).parent.parent / "fixtures" / "flash_stand_in"
VERSIONS = ("flash_attention_2", "flash_attention_3")
FAMILIES = ("llama", "mistral", "qwen3", "gemma2", "gemma3_text")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
PADDING = 3


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-ins can be imported and have the metadata of their packages; nothing about devices is changed."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import_utils._package_distribution_mapping.cache_clear()
    yield
    import_utils._package_distribution_mapping.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("flash_attn", "flash_attn_interface")]:
        del sys.modules[name]


@pytest.fixture
def calls(installed: None, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """As on a machine where both compute on the CPU; what they are called with."""
    for version in (2, 3):
        facts = {"general_availability_check": lambda: True, "supported_devices": ((lambda: True, "cpu"),)}
        monkeypatch.setitem(MATRIX, version, {**MATRIX[version], **facts})
        monkeypatch.setattr(modeling_flash_attention_utils, f"is_flash_attn_{version}_available", lambda: True)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    import flash_attn

    flash_attn.CALLS.clear()
    found: list[dict[str, Any]] = flash_attn.CALLS
    return found


def padded(length: int) -> dict[str, torch.Tensor]:
    ids = tokens(2, length)
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def on(model: PreTrainedModel, name: str) -> PreTrainedModel:
    model.set_attn_implementation(name)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("architecture", ["uniattn", "uniattn_windowed", "cla", "mixed"])
@torch.no_grad()
def test_layers_and_their_readers_compute_what_sdpa_computes(
    family: str, architecture: str, calls: list[dict[str, Any]]
) -> None:
    """Left padding, grouped queries, windows, soft caps; 12 tokens are more than a window has."""
    model, inputs = converted(family, architecture), padded(12)
    real = inputs["attention_mask"].bool()
    expected = model(**inputs, use_cache=False).logits
    found = on(model, "flash_attention_2")(**inputs, use_cache=False).logits
    torch.testing.assert_close(found[real], expected[real], **CLOSE)
    attending = [row for row in plan_of(family, architecture).rows if row.traits.attends]
    assert len(calls) == len(attending), "sources, readers and layers that nobody reads: each calls the kernel once"
    assert all(call["causal"] and call["varlen"] for call in calls)
    assert all(call["softcap"] == (2.0 if family == "gemma2" else 0.0) for call in calls)


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cached_steps_and_chunks_equal_one_forward(family: str, name: str, calls: list[dict[str, Any]]) -> None:
    model, ids = converted(family, "uniattn"), tokens(2, 13)
    expected = model(ids, use_cache=False).logits
    on(model, name)
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected, **CLOSE)
    chunked = prefill(model, ids[:, :11], chunk_size=4)
    torch.testing.assert_close(chunked.logits[:, -1], expected[:, 10], **CLOSE)
    for step in (11, 12):
        logits = model(ids[:, step : step + 1], past_key_values=chunked.past_key_values).logits
        torch.testing.assert_close(logits[:, -1], expected[:, step], **CLOSE)
    assert calls


@pytest.mark.parametrize("architecture", ["uniattn", "cla"])
@torch.no_grad()
def test_padded_prompts_are_generated_from_as_with_sdpa(architecture: str, calls: list[dict[str, Any]]) -> None:
    model, inputs = converted("mistral", architecture), padded(9)
    greedy: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    inputs.pop("position_ids")
    expected = model.generate(**inputs, **greedy)
    assert torch.equal(on(model, "flash_attention_3").generate(**inputs, **greedy), expected)
    assert calls


def test_gradients_reach_the_source_as_with_sdpa(calls: list[dict[str, Any]]) -> None:
    gradients = []
    for name in ("sdpa", "flash_attention_2"):
        model = on(converted("llama", "uniattn"), name)
        model(tokens(2, 12), use_cache=False).logits.square().sum().backward()
        gradients.append(model.get_decoder().layers[1].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    assert calls


@torch.no_grad()
def test_packed_rows_do_not_see_each_other(calls: list[dict[str, Any]]) -> None:
    model, ids = converted("llama", "uniattn"), tokens(1, 12)
    positions = torch.tensor([[*range(5), *range(7)]])
    expected = model(ids, position_ids=positions, use_cache=False).logits
    found = on(model, "flash_attention_2")(ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found, expected, **CLOSE)
    assert all(call["varlen"] for call in calls)


@torch.no_grad()
def test_a_stock_model_on_flash_attention_is_converted_as_it_is(calls: list[dict[str, Any]]) -> None:
    original, ids = on(stock("qwen3"), "flash_attention_2"), tokens(2, 9)
    expected = original(ids).logits
    model = unmodified_copy(original)
    assert model.config._attn_implementation == "flash_attention_2", "families decide by this name"
    torch.testing.assert_close(model(ids).logits, expected, **CLOSE)
    before = len(calls)
    converted_copy(original, plan_of("qwen3", "uniattn"))(ids)
    assert len(calls) == before + 6


def test_calibration_fits_what_it_fits_with_sdpa(calls: list[dict[str, Any]]) -> None:
    """Padded batches, heads aligned by their maps; sources and readers attend again, layer by layer."""
    fitted = []
    for name in ("sdpa", "flash_attention_2"):
        original = on(stock_llama(), name)
        model = converted_copy(original, uniattn_plan(compensated=True))
        data = batches(padded=True)[:2]
        report = calibrate(
            original, model, data[:1], data[1:], initialiser="least_squares", head_alignment="similarity"
        )
        assert [row.layer for row in report.rows] == [5, 6, 7]
        fitted.append((model.layer_plan, [p for n, p in model.named_parameters() if "w_c" in n]))
    assert calls
    assert fitted[0][0] == fitted[1][0], "the same heads"
    for expected, found in zip(fitted[0][1], fitted[1][1], strict=True):
        assert (found - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("padding", [0, PADDING])
def test_a_map_is_measured_with_the_mask_that_the_kernel_has_by_itself(padding: int, window: int | None) -> None:
    """FlashAttention is given padding [B, S] at most; head alignment and similarity compute rows of its map."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 7, 8), torch.randn(1, 2, 7, 8)
    mask = None if padding == 0 else torch.tensor([[0] * padding + [1] * (7 - padding)])
    back = torch.arange(7)[:, None] - torch.arange(7)
    seen = (back >= 0) & (back < (window or 7)) & (torch.arange(7) >= padding)
    arguments = {"scaling": 0.5, "sliding_window": window}
    expected = map_rows(ReplayedMap(query, key, seen[None, None], {"scaling": 0.5}), 0, padding, 7)
    torch.testing.assert_close(map_rows(ReplayedMap(query, key, mask, arguments), 0, padding, 7), expected)


def test_h2o_and_a_family_without_flash_attention_are_refused(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on(converted("llama", "uniattn"), "flash_attention_2")
    with pytest.raises(UserError, match="H2O sums attention maps, which flash_attention_2 does not give"):
        H2OCache(model, 0.5)
    monkeypatch.setattr(type(model), "_supports_flash_attn", False)
    with pytest.raises(UserError, match=r"a uniattn_llama model has no flash_attention_3; use eager\."):
        model.set_attn_implementation("flash_attention_3")


def test_a_package_that_is_missing_is_named_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where `kernels` is installed, with which transformers would ask the hub."""

    def fetched(*_: Any, **__: Any) -> None:
        pytest.fail("a kernel was asked for at the hub")

    monkeypatch.setattr("transformers.modeling_utils.is_kernels_available", lambda: True)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetched)
    words = r"flash_attention_2 needs the package flash-attn, which is not installed.*kernels here: sdpa, eager, flex_"
    model = converted("llama", "uniattn")
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        model.set_attn_implementation("flash_attention_2")
    with pytest.raises(UserError, match=words):
        load_model(str(tmp_path), attn_implementation="flash_attention_2", dtype="bfloat16")
    with pytest.raises(UserError, match=words):
        load_folder(tmp_path, attn_implementation="flash_attention_2")
    assert model.config._attn_implementation == "sdpa"


def test_a_machine_a_device_and_a_dtype_that_it_cannot_use_are_named(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("transformers.utils.import_utils.is_torch_cuda_available", lambda: False)
    with pytest.raises(UserError, match="flash_attention_3 computes on cuda only, and this machine has no such device"):
        check_kernel("flash_attention_3")
    for version in (2, 3):
        facts = {"general_availability_check": lambda: True, "supported_devices": ((lambda: True, "cuda"),)}
        monkeypatch.setitem(MATRIX, version, {**MATRIX[version], **facts})
    with pytest.raises(
        UserError, match=r"flash_attention_2 computes on cuda only, not on cpu\. Attention kernels here: sdpa"
    ):
        check_kernel("flash_attention_2", device=cpu)
    with pytest.raises(UserError, match="flash_attention_2 computes in bfloat16 and float16 only, not in float32"):
        check_kernel("flash_attention_2", device=cuda, dtype=torch.float32)
    check_kernel("flash_attention_2", device=cuda, dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"flash_attention_4 needs the package flash-attn-4.*flash_attention_3\."):
        check_kernel("flash_attention_4", device=cuda, dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_benchmark_says_once_which_kernels_are_here_and_why_others_are_not(
    dtype: torch.dtype, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    model = stock("llama").to(dtype)  # type: ignore[arg-type]
    flash = [] if dtype == torch.float32 else list(VERSIONS)
    for _ in range(2):
        assert measured_backends(model, ["installed"]) == sorted(["sdpa", "eager", "flex_attention", *flash])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"here: {', '.join(['sdpa', 'eager', 'flex_attention', *flash])}." in line
    assert "flash_attention_4 needs the package flash-attn-4, which is not installed" in line
    assert ("flash_attention_2 computes in bfloat16 and float16 only, not in float32" in line) is not bool(flash)
    without = stock("mimo_v2_flash")
    without._supports_flash_attn = False
    with pytest.raises(UserError, match=r"bench.backends: this mimo_v2_flash model has no flash_attention_2 kernel\."):
        measured_backends(without, ["eager", "flash_attention_2"])


def test_a_benchmark_measures_plans_on_a_flash_kernel_beside_stock_models(calls: list[dict[str, Any]]) -> None:
    plan = plan_of("qwen3", "uniattn")
    model = stock("qwen3").to(torch.bfloat16)  # type: ignore[arg-type]
    subjects = subjects_of(model, {"uniattn": plan}, "flash_attention_3", chunk_size=None)
    labels = [subject.label for subject in subjects]
    assert labels == ["stock", "stock flash_attention_3", "baseline", "uniattn", "llmdrop on the same layers"]
    options: dict[str, Any] = {"new_tokens": 2, "rounds": 1, "seed": 0, "progress": lambda _: None}
    measured = run_setting(subjects, Setting(16, 2, "flash_attention_3"), **options)
    assert [entry.label for entry in measured] == labels
    assert calls


def test_a_kernel_of_the_hub_is_not_converted() -> None:
    model = stock("llama")
    model.config._attn_implementation_internal = "kernels-community/flash-attn2"
    with pytest.raises(UserError, match=r"its kernel is the hub's 'kernels-community/flash-attn2'; converted models"):
        converted_copy(model, plan_of("llama", "uniattn"))
