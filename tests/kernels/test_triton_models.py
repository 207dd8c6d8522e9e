"""Whole models on the Triton kernels: the same logits and tokens as without them, whatever the mode, mask and cache."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.kernels.interpreter import NEEDS_TRITON, interpreted, runs_on
from tests.tiny_models import VOCABULARY, converted, tokens
from transformers import PreTrainedModel, StaticCache

from uniattn_pl.cli import main
from uniattn_pl.inference.prefill import prefill
from uniattn_pl.kernels.triton_maps import asked_attention
from uniattn_pl.kernels.triton_maps.availability import can_compute
from uniattn_pl.kernels.triton_maps.kept_rows import RowMap
from uniattn_pl.kernels.triton_maps.kept_tiles import TiledMap
from uniattn_pl.kernels.triton_maps.tile_layout import TileShape
from uniattn_pl.modeling.attention.operate import align_heads
from uniattn_pl.modeling.attention.reuse_attention import ReuseAttention
from uniattn_pl.modeling.caches.h2o_cache import H2OCache

pytestmark = NEEDS_TRITON
CLOSE = {"rtol": 0, "atol": 2e-5}
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
FAMILIES = ("llama", "qwen3", "gemma3_text")
Seen = list[type]


@pytest.fixture
def handles(device: str, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The kinds of maps that readers got."""
    runs_on(device)
    interpreted(monkeypatch)
    seen: Seen = []
    forward = ReuseAttention.forward

    def watched(attention: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(attention.published(kwargs).map))
        return forward(attention, *args, **kwargs)

    for kind in [ReuseAttention, *ReuseAttention.__subclasses__()]:
        if "forward" in vars(kind):
            monkeypatch.setattr(kind, "forward", watched)
    return seen


def on(device: str, family: str = "llama", architecture: str = "uniattn", mode: str = "auto") -> PreTrainedModel:
    model = copy.deepcopy(converted(family, architecture, mode)).to(device)
    model.generation_config.eos_token_id = None
    return model


def padded(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = tokens(2, 40).to(device), torch.ones(2, 40, dtype=torch.long, device=device)
    mask[1, :13] = 0
    return ids, mask


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_give_the_logits_of_replays(device: str, family: str, handles: Seen) -> None:
    model = on(device, family)
    ids, mask = padded(device)
    with torch.no_grad():
        for attention_mask in (None, mask):
            model.config.reuse_mode = "replay"
            expected = model(ids, attention_mask=attention_mask).logits
            model.config.reuse_mode = "tiles"
            handles.clear()
            found = model(ids, attention_mask=attention_mask).logits
            assert set(handles) == {TiledMap}
            torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **CLOSE)
            last = prefill(model, ids, attention_mask, chunk_size=16).logits[:, -1]
            torch.testing.assert_close(last, expected[:, -1], **CLOSE)


def test_tiles_in_8_bits_are_near(device: str, handles: Seen) -> None:
    model = on(device, mode="replay")
    ids, _ = padded(device)
    with torch.no_grad():
        expected = model(ids).logits
        model.config.reuse_mode = "tiles_fp8"
        difference = (model(ids).logits - expected).abs().max()
    assert 0 < difference < 0.1 * expected.std()
    assert TiledMap in handles


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_by_rows_gives_the_tokens_of_no_cache(device: str, family: str, handles: Seen) -> None:
    model = on(device, family)
    ids, mask = padded(device)
    for attention_mask in (None, mask):
        given = {"attention_mask": attention_mask, **GREEDY}
        model.config.reuse_mode = "replay"
        expected = model.generate(ids, use_cache=False, **given)
        model.config.reuse_mode = "auto"
        for cache in ({}, {"cache_implementation": "static", "disable_compile": True}):
            handles.clear()
            assert torch.equal(model.generate(ids, **given, **cache), expected)
            assert RowMap in handles


def test_heads_that_are_aligned(device: str, handles: Seen) -> None:
    model = on(device, architecture="uniattn")
    for layer in model.get_decoder().layers:
        if isinstance(layer.self_attn, ReuseAttention):
            align_heads(layer.self_attn, (3, 1, 0, 1))
    ids, _ = padded(device)
    with torch.no_grad():
        model.config.reuse_mode = "replay"
        expected = model(ids).logits
        model.config.reuse_mode = "tiles"
        torch.testing.assert_close(model(ids).logits, expected, **CLOSE)
        cache = prefill(model, ids[:, :-1]).past_key_values
        step = model(ids[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(step[:, 0], expected[:, -1], **CLOSE)
    assert {TiledMap, RowMap} <= set(handles)


def test_a_compiled_step_with_a_static_cache(device: str, handles: Seen) -> None:
    model = on(device)
    ids, _ = padded(device)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(ids).logits[:, -1:]
        cache = StaticCache(config=model.config, max_cache_len=64)
        model(ids[:, :-1], past_key_values=cache)
        step = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(step(ids[:, -1:], past_key_values=cache).logits, expected, **CLOSE)
    assert "RowMap" in {kind.__name__ for kind in handles}


def test_a_cache_that_gives_tokens_up_has_its_maps_as_a_whole(device: str, handles: Seen) -> None:
    model = on(device)
    ids, _ = padded(device)
    cache = H2OCache(model, 0.5)
    with torch.no_grad():
        prefill(model, ids[:1], past_key_values=cache)
        model(ids[:1, -1:], past_key_values=cache)
    assert handles
    assert not {TiledMap, RowMap} & set(handles)


def test_training_computes_maps_again(device: str, handles: Seen) -> None:
    model = on(device, mode="tiles").train()
    ids, _ = padded(device)
    model(ids, labels=ids).loss.backward()
    assert {kind.__name__ for kind in handles} == {"ReplayedMap"}
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_mask_without_structure_is_replayed(device: str, handles: Seen) -> None:
    """What no causal structure describes, tiles would compute wrongly."""
    model = on(device, mode="tiles")
    ids = torch.randint(3, VOCABULARY, (1, 12), device=device)
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool, device=device).tril()
    mask[..., 7, 3] = False
    with torch.no_grad():
        found = model(ids, attention_mask=mask).logits
        model.config.reuse_mode = "materialise"
        torch.testing.assert_close(found, model(ids, attention_mask=mask).logits, **CLOSE)
    assert TiledMap not in handles


def test_heads_too_large_for_a_card_and_masks_of_each_head_are_not_for_these_kernels() -> None:
    query, mask = torch.zeros(1, 4, 8, 256), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    assert can_compute(query, mask, {"scaling": 1.0, "s_aux": torch.zeros(4)})
    assert not can_compute(torch.zeros(1, 4, 8, 512), mask, {})
    assert not can_compute(query, mask.expand(1, 4, 8, 8), {})
    assert not can_compute(query, mask.float(), {})
    assert not can_compute(query, mask, {"position_bias": mask})


def test_a_chunk_counts_with_all_keys_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked_attention, "tiles_for", lambda *_: TileShape())
    monkeypatch.setattr(asked_attention, "card_of", lambda _: "a card")
    attention = SimpleNamespace(config=SimpleNamespace(map_memory_mib=1))  # 2**20 bytes: 2**18 weights in float32
    query, key = torch.zeros(1, 4, 256, 8), torch.zeros(1, 2, 256, 8)
    assert asked_attention.measured_tiles_for(query, key, attention) is not None  # 4 * 256 * 128 weights
    assert asked_attention.measured_tiles_for(query, torch.zeros(1, 2, 512, 8), attention) is None  # 4 * 256 * 384
    assert asked_attention.measured_tiles_for(query[..., :1, :], key, attention) is None, "a step keeps its row"


@pytest.mark.parametrize("mode", ["tiles", "tiles_fp8"])
@pytest.mark.parametrize("command", [["fit", "--dry-run"], ["bench", "--dry-run"], ["evaluate"]])
def test_tiles_are_refused_where_there_is_no_card(
    command: list[str], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(
        "name: a\nmodel: {source: tiny-llama}\narchitecture: {name: uniattn, superblock_size: 3, num_superblocks: 1}\n"
        "evaluation: {probes: [held_out]}\ntrainer: {accelerator: cpu, devices: 1}\n"
    )
    assert main([command[0], "--config", "a.yaml", f"model.reuse={mode}", *command[1:]]) == 2
    message = capsys.readouterr().err
    assert f"model.reuse={mode} needs Triton and a CUDA card of compute capability 8." in message
    assert "Traceback" not in message


def test_tiles_are_for_sdpa(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "model.source=tiny-llama", "model.reuse=tiles", "model.attn_implementation=eager"]) == 2
    assert "tiles are kept by kernels in the place of sdpa, not of eager" in capsys.readouterr().err


def test_auto_keeps_tiles_where_they_were_measured_to_win(
    device: str, handles: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on(device)
    ids, _ = padded(device)
    with torch.no_grad():
        expected = model(ids).logits
        assert TiledMap not in handles, "nothing was measured for this machine"
        monkeypatch.setattr(asked_attention, "tiles_for", lambda *_: TileShape(16, 16, 2, 1))
        monkeypatch.setattr(asked_attention, "card_of", lambda _: "a card")
        torch.testing.assert_close(model(ids).logits, expected, **CLOSE)
        assert TiledMap in handles
        handles.clear()
        model.config.map_memory_mib = 0
        torch.testing.assert_close(model(ids).logits, expected, **CLOSE)
    assert TiledMap not in handles, "larger than one map may be"
