"""Steps compiled over a static cache give the tokens of plain ones, in `generate` and in what `bench` measures."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import converted, tokens
from transformers import CompileConfig

from uniattn_pl.cli import main
from uniattn_pl.errors import UserError
from uniattn_pl.inference import compiled_decoding
from uniattn_pl.inference.timing import TimedModel, measure
from uniattn_pl.modeling.conversion.convert import apply_architecture
from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer

ARCHITECTURES = ("uniattn", "cla", "llmdrop")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Steps are traced whole but not compiled to machine code, which takes long; counts what is traced."""
    graphs: list[int] = []

    def count(graph: Any, example: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph

    def config(device: torch.device) -> CompileConfig:
        wanted: Any = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend=count)
        wanted._compile_all_devices = True
        return wanted

    monkeypatch.setattr(compiled_decoding, "step_config", config)
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_measured_step_is_one_graph_and_predicts_the_same(architecture: str, traced: list[int]) -> None:
    model = copy.deepcopy(converted("llama", architecture))
    ids = tokens(2, 12)
    greedy = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    subject = TimedModel("it", model, model.layer_plan, chunked=True)
    with torch.no_grad():
        expected = model.generate(ids, use_cache=False, **greedy)
    plain = measure(subject, ids, 6)
    compiled = measure(TimedModel("it", model, model.layer_plan, chunked=True, compiled=True), ids, 6)
    assert plain.kv_bytes == compiled.kv_bytes
    assert len(traced) == 1, "every step replays the graph of the first"
    cache = compiled_decoding.static_cache(model, 20)
    step, out = compiled_decoding.compiled_step(model), []
    with torch.no_grad():
        token = subject.prefill(ids, cache).logits[:, -1:].argmax(-1)
        for _ in range(6):
            out.append(token)
            token = step(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    assert torch.equal(torch.cat(out, dim=1), expected[:, 12:])


@pytest.mark.parametrize("architecture", [None, "uniattn"])
def test_generate_compiles_and_gives_the_same_text(
    architecture: str | None, traced: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model("tiny-llama", dtype="float32")
    if architecture is not None:
        apply_architecture(model, architecture, superblock_size=4, num_superblocks=1)
    model.save_pretrained(tmp_path)
    load_tokenizer("tiny-llama").save_pretrained(tmp_path)
    prompts = ["--prompt", "The heart pumps blood", "--prompt", "Lungs"]
    command = ["generate", "--from", str(tmp_path), *prompts, "--max-new-tokens", "6"]
    assert main(command) == 0
    plain = capsys.readouterr().out
    assert not traced
    assert main([*command, "--compile"]) == 0
    assert capsys.readouterr().out == plain
    assert len(traced) == 1, "one graph serves every prompt"


def test_a_cache_that_gives_tokens_up_is_not_compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "x", "--compile", "--h2o", "0.5"]
    assert main(["generate", "--from", str(tmp_path), *words]) == 2
    assert "--compile needs a cache of fixed size" in capsys.readouterr().err


def test_a_model_that_cannot_be_compiled_whole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(converted("llama", "uniattn"))
    monkeypatch.setattr(type(model), "_can_compile_fullgraph", False)
    with pytest.raises(UserError, match=r"transformers cannot compile a decoding step of this model (.*) as a whole"):
        compiled_decoding.compiled_step(model)
