"""Similarity of attention maps and importance of attentions, against what transformers itself returns."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import VOCABULARY, stock

from uniattn_pl.architectures import LLMDrop, UniAttn
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.plan import PlanError
from uniattn_pl.search import map_similarity
from uniattn_pl.search.importance import attention_importance
from uniattn_pl.search.map_similarity import adjacent_similarity, map_chunks

Batch = dict[str, torch.Tensor]
FAMILIES = ["llama", "mistral", "gemma2", "olmo2"]


def batch() -> Batch:
    ids = torch.randint(3, VOCABULARY, (3, 14), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(14) < torch.tensor([14, 9, 5])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("chunk_bytes", [1, 2**28])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_maps_are_those_the_model_attends_with(family: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_similarity, "CHUNK_BYTES", chunk_bytes)
    model, data = stock(family), batch()
    chunks = list(map_chunks(model, data))
    assert len(chunks) == (int(data["attention_mask"].sum()) if chunk_bytes == 1 else 3)
    model.set_attn_implementation("eager")
    for row, length in enumerate(data["attention_mask"].sum(1).tolist()):
        output = model(data["input_ids"][row : row + 1, :length], output_attentions=True)
        expected = torch.stack(output.attentions)[:, 0]
        own = [chunk for chunk in chunks if chunk.shape[-1] == length]
        torch.testing.assert_close(torch.cat(own, dim=2), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_similarity_is_the_mean_cosine_of_head_averaged_rows(family: str) -> None:
    model, data = stock(family), batch()
    found = adjacent_similarity(model, [data])
    model.set_attn_implementation("eager")
    cosines = []
    for ids, mask in zip(data["input_ids"], data["attention_mask"], strict=True):
        maps = model(ids[mask.bool()][None], output_attentions=True).attentions
        averaged = torch.stack(maps)[:, 0].mean(dim=1)
        cosines.append(torch.cosine_similarity(averaged[1:], averaged[:-1], dim=-1))
    expected = torch.cat(cosines, dim=1).mean(dim=1)
    assert found[0] is None
    assert found[1:] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_importance_is_what_the_attention_does_to_the_stream(family: str) -> None:
    """The stream behind the attention is the layer's output less what the feed-forward added."""
    model, data = stock(family), batch()
    found = attention_importance(model, [data])
    seen: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        last = getattr(layer, "post_feedforward_layernorm", layer.mlp)
        last.register_forward_hook(lambda _, __, output, i=index: seen.__setitem__(f"ffn{i}", output))
        layer.register_forward_hook(
            lambda _, args, output, i=index: seen.update({f"in{i}": args[0], f"out{i}": output})
        )
    model(data["input_ids"], attention_mask=data["attention_mask"])
    for index, value in enumerate(found):
        behind = seen[f"out{index}"] - seen[f"ffn{index}"]
        cosine = torch.cosine_similarity(seen[f"in{index}"], behind, dim=-1)
        assert value == pytest.approx((1 - cosine)[data["attention_mask"].bool()].mean().item(), abs=1e-5)


class Answers:
    """Measurements made up so that the choice is known."""

    def map_similarity(self) -> list[float | None]:
        return [None, 0.1, 0.9, 0.8, 0.2, 0.7]

    def attention_importance(self) -> list[float]:
        return [0.0, 0.9, 0.8, 0.3, 0.1, 0.2]


class Similar(Answers):
    """Answers with other similarities of layers 1 to 5."""

    def __init__(self, *similarity: float) -> None:
        self.similarity = similarity

    def map_similarity(self) -> list[float | None]:
        return [None, *self.similarity]


def test_similar_layers_that_see_further_than_their_source_are_passed_over() -> None:
    """Of layers that see 8 tokens, all, 8, all, 8, 8 the first that sees all cannot reuse, the other only behind it."""
    shape = shape_of(stock("gemma3_text").config)
    ranked = Similar(0.9, 0.1, 0.7, 0.8, 0.6)  # 1, 4, 3, 5, 2
    for number, reused in {1: (4,), 2: (4, 5), 3: (2, 4, 5), 4: (2, 3, 4, 5)}.items():
        plan = UniAttn(selection="similarity", num_reused=number).choose(shape, ranked)  # type: ignore[arg-type]
        assert plan.operated == reused
        plan.check(shape)
    with pytest.raises(PlanError, match="num_reused is 5; the model's windows let 4 layers reuse"):
        UniAttn(selection="similarity", num_reused=5).choose(shape, ranked)  # type: ignore[arg-type]


def test_architectures_take_the_best_ones() -> None:
    shape = shape_of(stock("llama").config)
    plan = UniAttn(selection="similarity", num_reused=3).choose(shape, Answers())  # type: ignore[arg-type]
    full = ("full", None)
    assert [(r.role, r.source) for r in plan.rows] == [full, full, ("reuse", 1), ("reuse", 1), full, ("reuse", 4)]
    dropped = LLMDrop(num_dropped=2).choose(shape, Answers())  # type: ignore[arg-type]
    assert dropped.operated == (4, 5)
    everywhere = LLMDrop(num_dropped=2, among="all").choose(shape, Answers())  # type: ignore[arg-type]
    assert everywhere.operated == (0, 4)
    with pytest.raises(PlanError, match="num_dropped is 4; top_half has 3 layers"):
        LLMDrop(num_dropped=4).choose(shape, Answers())  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="not both"):
        LLMDrop(num_dropped=1, layers=[1]).choose(shape, Answers())  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="num_reused is 6; at most 5 of 6"):
        UniAttn(selection="similarity", num_reused=6).choose(shape, Answers())  # type: ignore[arg-type]
