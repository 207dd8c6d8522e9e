"""Models built without weights, sharded, and filled from a folder: the same function, units as the stage wants them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import DISTINCT, EAGER_ONLY, VOCABULARY, converted, stock
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from uniattn_pl.families.inspection import decoder_layers
from uniattn_pl.modeling.loading.sharded_weights import fill_weights, skeleton
from uniattn_pl.training.callbacks.sharding import Sharding
from uniattn_pl.training.callbacks.stage_freezing import freeze_for_stage


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """One rank: sharding and gathering run all the same."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def sharded(folder: Path, mesh: DeviceMesh, *, stage: int, family: str = "llama", freeze: bool = True) -> Any:
    model: Any = skeleton(folder, dtype=torch.float32, attn_implementation="eager" if family in EAGER_ONLY else "sdpa")
    assert all(parameter.is_meta for parameter in model.parameters())
    if freeze:
        freeze_for_stage(model, stage)
    Sharding(stage).shard(model, mesh)
    fill_weights(model, folder, "cpu")
    return model


@pytest.mark.parametrize("family", [*DISTINCT, "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("architecture", [None, "uniattn", "cla"])
def test_a_filled_skeleton_computes_what_the_loaded_folder_does(
    family: str, architecture: str | None, mesh: DeviceMesh, tmp_path: Path
) -> None:
    model: Any = stock(family) if architecture is None else converted(family, architecture)
    model.save_pretrained(tmp_path, save_original_format=False)  # experts stacked, as a fit saves its start
    tokens = torch.arange(2, 22).view(2, 10) % VOCABULARY
    with torch.no_grad():
        found = sharded(tmp_path, mesh, stage=2, family=family, freeze=False)(input_ids=tokens, use_cache=False)
        assert torch.allclose(found.logits, model(input_ids=tokens, use_cache=False).logits, atol=1e-6)


def test_a_folder_of_several_files_is_read_too(mesh: DeviceMesh, tmp_path: Path) -> None:
    model: Any = stock("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    filled = sharded(tmp_path, mesh, stage=2, freeze=False)
    for name, parameter in filled.named_parameters():
        assert torch.equal(parameter.full_tensor(), model.get_parameter(name)), name


def test_a_folder_that_lacks_weights_is_refused(mesh: DeviceMesh, tmp_path: Path) -> None:
    model: Any = stock("llama")
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.2.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks model\.layers\.2\.mlp"):
        sharded(tmp_path, mesh, stage=2, freeze=False)


@pytest.mark.parametrize("stage", [1, 2])
def test_layers_are_units_and_in_stage_1_each_w_c_is_one_too(stage: int, mesh: DeviceMesh, tmp_path: Path) -> None:
    converted("llama", "uniattn").save_pretrained(tmp_path)
    model = sharded(tmp_path, mesh, stage=stage)
    layers = decoder_layers(model)
    assert isinstance(model, FSDPModule)
    assert all(isinstance(layer, FSDPModule) for layer in layers)
    compensations = [layer.self_attn.w_c for layer in layers if getattr(layer.self_attn, "w_c", None) is not None]
    assert len(compensations) == 2
    assert all(isinstance(w_c, FSDPModule) == (stage == 1) for w_c in compensations)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def test_in_stage_1_only_w_c_has_gradients(mesh: DeviceMesh, tmp_path: Path) -> None:
    converted("llama", "uniattn").save_pretrained(tmp_path)
    model = sharded(tmp_path, mesh, stage=1).train()
    tokens = torch.arange(2, 12).unsqueeze(0)
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if "w_c" in name}
