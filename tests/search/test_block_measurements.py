"""Influence of blocks, NBL's bound, distances of caches and final states, against plainer references."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from tests.tiny_models import LAYERS, UNMODIFIED, VOCABULARY, stock
from transformers import DynamicCache

from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.search.cache_sharing import FinalStates, cache_distances
from uniattn_pl.search.linear_bound import linear_bounds
from uniattn_pl.search.stream_changes import block_influence

Batch = dict[str, torch.Tensor]
FAMILIES = ["llama", "gemma2", "granite"]


def batch(rows: int = 3, length: int = 14, *, padded: bool = True, seed: int = 3) -> Batch:
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    lengths = torch.linspace(length, 5 if padded else length, rows).long()
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("span", [1, 2, LAYERS])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_influence_is_the_cosine_distance_of_the_streams_around_so_many_blocks(family: str, span: int) -> None:
    data = [batch(), batch(2, 9, seed=4)]
    found = block_influence(stock(family), data, span)
    model = stock(family)
    expected, tokens = torch.zeros(LAYERS - span + 1), 0
    streams: list[torch.Tensor] = []
    for module in (*model.model.layers, model.model.norm):
        module.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    for part in data:
        streams.clear()
        model(**part)
        mask = part["attention_mask"].bool()
        tokens += int(mask.sum())
        pairs = zip(streams[:-span], streams[span:], strict=True)
        expected += torch.stack([(1 - torch.cosine_similarity(a, b, dim=-1))[mask].sum() for a, b in pairs])
    assert found == pytest.approx((expected / tokens).tolist(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_bound_is_that_of_the_canonical_correlations_and_holds(family: str) -> None:
    """Correlations as singular values of whitened cross-covariances; the error of the best affine estimate below it."""
    model, data = stock(family), batch(24, 30)
    found = linear_bounds(
        model, [{name: part[:10] for name, part in data.items()}, {n: p[10:] for n, p in data.items()}]
    )
    mask = data["attention_mask"].bool()
    for index, layer in enumerate(model.model.layers):
        seen: dict[str, torch.Tensor] = {}
        last = layer.post_attention_layernorm if family == "gemma2" else layer.self_attn
        scale = getattr(layer, "residual_multiplier", 1.0)
        handles = [
            layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(stream=args[0])),
            layer.self_attn.register_forward_pre_hook(
                lambda _, args, kwargs, seen=seen: seen.update(x=kwargs["hidden_states"]), with_kwargs=True
            ),
            last.register_forward_hook(
                lambda _, args, output, seen=seen: seen.update(added=output[0] if isinstance(output, tuple) else output)
            ),
        ]
        model(**data)
        for handle in handles:
            handle.remove()
        x = seen["x"][mask].double()
        y = (seen["stream"] + scale * seen["added"])[mask].double()
        x, y = x - x.mean(0), y - y.mean(0)
        whitened = [torch.linalg.svd(part, full_matrices=False)[0] for part in (x, y)]
        rho = torch.linalg.svdvals(whitened[0].T @ whitened[1])
        assert found[index] == pytest.approx(float((1 - rho.square()).sum()), rel=0.02, abs=0.02)
        rest = y - x @ torch.linalg.lstsq(x, y).solution
        assert float(rest.square().sum() / y.square().sum()) < found[index] + 0.02


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@torch.no_grad()
def test_distances_are_those_of_caches_averaged_by_position(family: str) -> None:
    """Windowed layers, too, count with every token; a position that only some rows have is their average."""
    model, data = stock(family), [batch(), batch(2, 9, seed=4)]
    found = cache_distances(model, data)
    of_rows: list[list[torch.Tensor]] = []
    for part in data:
        for ids, mask in zip(part["input_ids"], part["attention_mask"], strict=True):
            alone = ids[mask.bool()][None]
            cache = DynamicCache()
            model.model(alone, past_key_values=cache)
            # [2, Hkv, S, D]
            of_rows.append([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])
    longest = max(row[0].shape[2] for row in of_rows)
    means = []
    for index in range(LAYERS):
        positions = []
        for position in range(longest):
            having = [row[index][:, :, position] for row in of_rows if row[index].shape[2] > position]
            positions.append(torch.stack(having).mean(0))
        means.append(torch.stack(positions, dim=2))
    for one, other in combinations(range(LAYERS), 2):
        expected = float((means[one] - means[other]).norm(dim=-1).mean())
        assert found[one][other] == pytest.approx(expected, rel=1e-4)
        assert found[one][other] == found[other][one]


def test_layers_of_other_heads_can_share_nothing() -> None:
    model = stock("mimo_v2_flash")
    distances = cache_distances(model, [batch()])
    shape = shape_of(model.config)
    alike = [[a.heads == b.heads for b in shape.layers] for a in shape.layers]
    assert [[value > float("-inf") for value in row] for row in distances] == alike


@torch.no_grad()
def test_final_states_are_compared_row_by_row() -> None:
    model, data = stock("llama"), [batch(), batch(2, 9, seed=4)]
    plan = UNMODIFIED.share_kv([4], 1, compensated=False)
    states = FinalStates(model, data)
    assert states.similarity(UNMODIFIED) == pytest.approx(1.0, abs=1e-6)
    changed, cosines = converted_copy(model, plan), []
    for part in data:
        for ids, mask in zip(part["input_ids"], part["attention_mask"], strict=True):
            a, b = (m.model(ids[mask.bool()][None]).last_hidden_state.flatten() for m in (model, changed))
            cosines.append(torch.cosine_similarity(a, b, dim=0))
    assert states.similarity(plan) == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)
