"""The methods of every environment: each function imports what its environment has, and makes `Method`s.

Models come as folders: `stock`, written by this package and readable by every version of transformers, and
converted ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Method

STOCK = "stock transformers"
FURTHER = 0.25  # given up of the prompt's tokens beside a plan of 80 %, which leaves 60 %


def product(inputs: Path, code: Path | None) -> Iterator[Method]:
    """Stock transformers, its quantised caches, this package's models, and both together, on one transformers."""
    from transformers import AutoModelForCausalLM, DynamicCache, QuantizedCache

    import uniattn_pl  # noqa: F401  - registers its models

    def loaded(name: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(inputs / name, dtype="bfloat16", attn_implementation="sdpa").eval()

    def quantised(model: Any, backend: str, **options: Any) -> dict[str, Any]:
        return {"new_cache": lambda: QuantizedCache(backend, model.config, **options), "shallow": True}

    def plain(model: Any) -> dict[str, Any]:
        return {"new_cache": lambda: DynamicCache(config=model.config)}

    stock = loaded("stock")
    yield Method(STOCK, stock, **plain(stock))
    eight, four = {"nbits": 8}, {"nbits": 4}
    for bits, backend, options in ((8, "hqq", eight), (8, "fp8", {}), (4, "hqq", four), (4, "quanto", four)):
        yield Method(f"quantised cache, {backend}, {bits} bits", stock, **quantised(stock, backend, **options))
    uniattn, half, nbl = loaded("uniattn"), loaded("llmdrop-half"), loaded("nbl-60")
    yield Method("UniAttn, 4 Superblocks", uniattn, **plain(uniattn))
    yield Method("LLMDrop-Half + W_c", half, **plain(half))
    yield Method("NBL, 12 layers + W_c", nbl, **plain(nbl))
    for model, name in ((uniattn, "UniAttn"), (half, "LLMDrop-Half + W_c")):
        yield Method(f"{name} + hqq, 8 bits", model, **quantised(model, "hqq", **eight))
    yield Method("UniAttn + hqq, 4 bits", uniattn, **quantised(uniattn, "hqq", **four))
    library = _scores_of_kvpress()

    def with_press(name: str, model: Any, press: Any) -> Method:
        return Method(name, model, press=pressed(model, press), **plain(model))

    yield with_press("UniAttn + ExpectedAttention", uniattn, library.ExpectedAttentionPress(compression_ratio=FURTHER))
    yield with_press("UniAttn + SnapKV", uniattn, library.SnapKVPress(compression_ratio=FURTHER))
    yield with_press(
        "LLMDrop-Half + ExpectedAttention", half, library.ExpectedAttentionPress(compression_ratio=FURTHER)
    )
    yield with_press(
        "ExpectedAttention by our hooks, 80%", stock, library.ExpectedAttentionPress(compression_ratio=0.2)
    )


def kvpress(inputs: Path, code: Path | None) -> Iterator[Method]:
    """Presses of kvpress on the stock model, with the transformers that kvpress pins."""
    import kvpress as library
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(inputs / "stock", dtype="bfloat16", attn_implementation="sdpa").eval()
    yield Method(STOCK, model, DynamicCache)
    for name in ("ExpectedAttention", "SnapKV", "KVzip"):
        for retained in (0.8, 0.6):
            press = getattr(library, f"{name}Press")(compression_ratio=1 - retained)
            note = "masks what it gives up, and holds it all the same" if name == "KVzip" else ""
            yield Method(f"{name}, {retained:.0%}", model, DynamicCache, _around(press, model), note=note)


def _scores_of_kvpress() -> Any:
    """kvpress without the wrapper that importing it puts around every attention function of the process, with which
    stock transformers would be timed."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    functions = dict(ALL_ATTENTION_FUNCTIONS.items())
    import kvpress as library

    for name, function in functions.items():
        ALL_ATTENTION_FUNCTIONS[name] = function
    return library


def _around(press: Any, model: Any) -> Callable[[], Any]:
    return lambda: press(model)


def pressed(model: Any, press: Any) -> Callable[[], Any]:
    """What lets a press of kvpress compress the cache of a converted model, or of a stock one.

    A layer that holds keys is scored by the press; one that holds the values to another's map keeps the tokens of that
    layer, since a map has a column for each of them. kvpress's own hooks score every layer by its own queries and keys.
    """
    plan, decoder = getattr(model, "layer_plan", None), model.model

    @contextmanager
    def around() -> Iterator[None]:
        kept: dict[int, Any] = {}

        def compress(module: Any, arguments: Any, named: dict[str, Any], output: Any) -> None:
            index = module.layer_idx
            layer = named["past_key_values"].layers[index]
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            if values is None or not values.numel():
                return
            root = index if plan is None else plan.root(index)
            if root == index:
                scores = press.score(module, named["hidden_states"], keys, values, None, named)
                kept[index] = scores.topk(int(keys.shape[2] * (1 - press.compression_ratio)), dim=-1).indices
                layer.keys = _taken(keys, kept[root])
            layer.values = _taken(values, kept[root])

        hooks = []
        for block in decoder.layers:
            block.self_attn.rotary_emb = decoder.rotary_emb  # which presses that foresee queries ask for
            hooks.append(block.self_attn.register_forward_hook(compress, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for block in decoder.layers:
                del block.self_attn.rotary_emb

    return around


def _taken(states: Any, indices: Any) -> Any:
    return states.gather(2, indices[..., None].expand(-1, -1, -1, states.shape[-1])).contiguous()


def llm_drop(inputs: Path, code: Path | None) -> Iterator[Method]:
    """LLM-Drop's own modelling of Llama with the attention of given layers dropped; it has no compensation."""
    import importlib
    import json

    import torch
    from transformers import AutoModelForCausalLM

    precision = {"torch_dtype": torch.bfloat16}
    yield Method(STOCK, AutoModelForCausalLM.from_pretrained(inputs / "stock", **precision).eval())
    assert code is not None
    sys.path.insert(0, str(code / "src/llmtuner/compression/prune"))
    modelling = importlib.import_module("models.modeling_dropped_llama")
    settings = importlib.import_module("models.configuration_dropped_llama")
    for name, layers in json.loads((inputs / "layers.json").read_text())["dropped"].items():
        # as its README says: the lists stand in config.json, from which they become one flag for each layer
        lists = {"drop_attn_list": layers, "drop_mlp_list": []}
        config = settings.LlamaConfig.from_dict({**json.loads((inputs / "stock/config.json").read_text()), **lists})
        model = modelling.LlamaForCausalLM.from_pretrained(inputs / "stock", config=config, **precision)
        yield Method(f"LLM-Drop's code, {name}", model.eval(), note="no compensation in that code")


def uniattn_official(inputs: Path, code: Path | None) -> Iterator[Method]:
    """UniAttn's own modelling of Llama with the weights of the model that this package calibrated."""
    import importlib
    import json

    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

    stock = AutoModelForCausalLM.from_pretrained(inputs / "stock", torch_dtype=torch.bfloat16).eval()
    yield Method(STOCK, stock, DynamicCache)
    assert code is not None
    sys.path.insert(0, str(code))
    modelling = importlib.import_module("model_file.modeling_llama_softmax_layer_init")
    group = json.loads((inputs / "layers.json").read_text())["superblocks"]
    config = LlamaConfig.from_pretrained(inputs / "stock")
    config.update(group)
    model = modelling.LlamaForCausalLM.from_pretrained(
        inputs / "stock", config=config, torch_dtype=torch.bfloat16
    ).eval()
    ours = load_file(inputs / "uniattn" / "model.safetensors")
    renamed = {name.replace("self_attn.w_c.", "v2_proj."): tensor for name, tensor in ours.items()}
    missing, unknown = model.load_state_dict({k: v.to(torch.bfloat16) for k, v in renamed.items()}, strict=False)
    if unknown or any("v2_proj" in name for name in missing):
        raise RuntimeError(f"the converted weights do not fit UniAttn's code: {unknown}, {missing}")
    yield Method("UniAttn's code, our W_c and W_o", model, DynamicCache, shared=group)


METHODS: dict[str, Callable[[Path, Path | None], Iterator[Method]]] = {
    "product": product,
    "kvpress": kvpress,
    "llm-drop": llm_drop,
    "uniattn-official": uniattn_official,
}


def chosen(environment: str, inputs: Path, code: Path | None, only: Sequence[str]) -> list[Method]:
    """The methods of an environment whose names have one of the words, and stock transformers."""
    made = METHODS[environment](inputs, code)
    return [method for method in made if method.name == STOCK or not only or any(w in method.name for w in only)]
