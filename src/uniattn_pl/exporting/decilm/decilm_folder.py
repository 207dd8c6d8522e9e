"""Writing a DeciLM folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.exporting.decilm.decilm_support import has_biases
from uniattn_pl.exporting.llama_blocks import linear_matrix
from uniattn_pl.families.inspection import decoder_layers, decoder_of
from uniattn_pl.plan import LayerPlan, LayerRow, ModelShape

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WIDTHS = 256  # engines round a feed-forward up to a multiple of this
CODE = Path(__file__).with_name("configuration_decilm.py")


def write_decilm(model: PreTrainedModel, plan: LayerPlan, shape: ModelShape, folder: Path) -> None:
    """Write weights, config and its code for a model that `decilm_problems` finds nothing wrong with.

    Blocks that a plan leaves out are not in the folder; those above them move down.
    """
    import torch
    from huggingface_hub import save_torch_state_dict

    with torch.no_grad():
        save_torch_state_dict(dict(_weights(model, plan)), folder)
    model.generation_config.save_pretrained(folder)
    (folder / CODE.name).write_text(CODE.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(_config(model.config, plan, shape), indent=2), encoding="utf-8")


def padded_width(intermediate_size: int) -> int:
    """The width that every engine rounds a feed-forward of this width to; what is added is zero and changes nothing."""
    return math.ceil(intermediate_size / WIDTHS) * WIDTHS


def _config(config: Any, plan: LayerPlan, shape: ModelShape) -> dict[str, Any]:
    rows = [row for row in plan.rows if row.traits.feed_forward]
    width = padded_width(config.intermediate_size)
    taken = (
        "hidden_size num_attention_heads num_key_value_heads rms_norm_eps vocab_size max_position_embeddings "
        "rope_parameters hidden_act tie_word_embeddings bos_token_id eos_token_id pad_token_id attention_bias mlp_bias"
    )
    own = {name: getattr(config, name) for name in taken.split() if getattr(config, name, None) is not None}
    rotation = own["rope_parameters"]
    stretched = rotation.get("rope_type", "default") != "default"
    return {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        **own,
        **({"qkv_bias": True} if has_biases(config) else {}),
        # as engines of an earlier transformers read the rotation
        "rope_theta": rotation["rope_theta"],
        "rope_scaling": {key: value for key, value in rotation.items() if key != "rope_theta"} if stretched else None,
        "head_dim": shape.layers[0].heads.size,
        "num_hidden_layers": len(rows),
        "intermediate_size": width,
        "torch_dtype": str(config.dtype).removeprefix("torch."),
        "block_configs": [_block(row, shape, width, config.hidden_size) for row in rows],
    }


def _block(row: LayerRow, shape: ModelShape, width: int, hidden_size: int) -> dict[str, Any]:
    """One entry of `block_configs`."""
    heads = row.sized(shape.layers[row.index]).heads
    linear = row.compensated
    return {
        "attention": {
            "no_op": not row.traits.attends and not linear,
            "replace_with_linear": linear,
            "n_heads_in_group": heads.queries // heads.groups if row.traits.attends else None,
        },
        # engines take ceil256(int(2 * ffn_mult * d / 3)), which is this width whichever way the product rounds
        "ffn": {"no_op": False, "replace_with_linear": False, "ffn_mult": 1.5 * width / hidden_size},
    }


def _weights(model: PreTrainedModel, plan: LayerPlan) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of the folder: the family's own, W_c as `linear_attn`, nothing of a block that is left out."""
    decoder = decoder_of(model)
    yield "model.embed_tokens.weight", decoder.embed_tokens.weight
    yield "model.norm.weight", decoder.norm.weight
    if not model.config.tie_word_embeddings:
        yield "lm_head.weight", model.get_output_embeddings().weight
    kept = [row.index for row in plan.rows if row.traits.feed_forward]
    for place, index in enumerate(kept):
        layer, prefix = decoder_layers(model)[index], f"model.layers.{place}"
        w_c = getattr(layer.self_attn, "w_c", None)
        if w_c is not None:
            yield f"{prefix}.self_attn.linear_attn.weight", linear_matrix(w_c)
        for name, tensor in layer.named_parameters():
            if not name.startswith("self_attn.w_c."):
                yield f"{prefix}.{name}", _padded(name, tensor, model.config.intermediate_size)


def _padded(name: str, tensor: torch.Tensor, width: int) -> torch.Tensor:
    """A matrix of the feed-forward with zero rows or columns up to `padded_width`."""
    from torch.nn.functional import pad

    more = padded_width(width) - width
    if name in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
        return pad(tensor, (0, 0, 0, more))
    if name in ("mlp.gate_proj.bias", "mlp.up_proj.bias"):
        return pad(tensor, (0, more))
    return pad(tensor, (0, more)) if name == "mlp.down_proj.weight" else tensor
