"""Writing a model to a GGUF file, one tensor after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.errors import UserError
from uniattn_pl.exporting.export_target import GGUF_DTYPES
from uniattn_pl.exporting.gguf.deci_blocks import CONSTANT_WIDTH, DeciBlock, block_tensors, deci_blocks
from uniattn_pl.exporting.gguf.gguf_tokenizer import add_tokenizer
from uniattn_pl.families.inspection import decoder_layers, decoder_of
from uniattn_pl.plan import LayerPlan, ModelShape

if TYPE_CHECKING:
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DECI = "deci"
PLAN_KEY = "uniattn_pl.layer_plan"

Tensors = Iterator[tuple[str, Callable[[], "torch.Tensor"]]]
Tell = Callable[[int, int, str], None]


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: LayerPlan,
    shape: ModelShape,
    file: Path,
    *,
    dtype: str,
    name: str,
    tell: Tell,
) -> None:
    """Write a model that `deci_problems` finds nothing wrong with.

    Args:
        model: with its plan applied.
        file: to be made, under a name of its own until it is whole.
        dtype: a name of `GGUF_DTYPES`, of matrices.
        name: of the model, for the file's metadata.
        tell: is told how many tensors of how many are written.

    Raises:
        UserError: llama.cpp has no such tokenizer, or a weight is too large for float16.
    """
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(file, DECI)
    _add_sizes(writer, model.config, plan, shape, dtype)
    writer.add_name(name)
    writer.add_string(PLAN_KEY, json.dumps(plan.to_dict()))
    generation = model.generation_config
    add_tokenizer(writer, tokenizer, vocabulary=model.config.vocab_size, ends=_ends(generation))
    _add_sampling(writer, generation)
    tensors = list(_tensors(model, plan, shape))
    for key, make in tensors:
        value = make()
        kind = _kind(value, dtype)
        size, stored = _stored(tuple(value.shape), kind)
        writer.add_tensor_info(key, size, np.dtype(stored), int(np.prod(size)) * np.dtype(stored).itemsize, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for index, (key, make) in enumerate(tensors):
        writer.write_tensor_data(_as_written(key, make(), dtype))
        tell(index + 1, len(tensors), key)
    writer.close()


def _add_sizes(writer: GGUFWriter, config: Any, plan: LayerPlan, shape: ModelShape, dtype: str) -> None:
    from gguf import LlamaFileType, RopeScalingType

    blocks = deci_blocks(plan, shape)
    heads = shape.layers[0].heads
    rotation: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    writer.add_file_type(LlamaFileType[GGUF_DTYPES[dtype]])
    writer.add_context_length(shape.positions or config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(len(blocks))
    writer.add_head_count([block.heads for block in blocks])
    writer.add_head_count_kv([block.kv_heads for block in blocks])
    writer.add_feed_forward_length([_width(block, config) for block in blocks])
    writer.add_key_length(heads.size)
    writer.add_value_length(heads.value_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(heads.size)
    writer.add_rope_freq_base(float(rotation.get("rope_theta", 10000.0)))
    if rotation.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rotation["factor"]))


def _width(block: DeciBlock, config: Any) -> int:
    return CONSTANT_WIDTH if block.constant else int(config.intermediate_size)


def _ends(generation: Any) -> list[int]:
    ends = generation.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _add_sampling(writer: GGUFWriter, generation: Any) -> None:
    """How the model is sampled from by default, where it says so."""
    if not generation.do_sample:
        return
    given = (
        (writer.add_sampling_temp, generation.temperature),
        (writer.add_sampling_top_k, generation.top_k),
        (writer.add_sampling_top_p, generation.top_p),
        (writer.add_sampling_min_p, generation.min_p),
        (writer.add_sampling_penalty_repeat, generation.repetition_penalty),
    )
    for add_value, value in given:
        if value is not None:
            add_value(value)


def _tensors(model: PreTrainedModel, plan: LayerPlan, shape: ModelShape) -> Tensors:
    """Every tensor of the file and what makes it."""
    config, decoder = model.config, decoder_of(model)
    yield "token_embd.weight", lambda: decoder.embed_tokens.weight
    yield "output_norm.weight", lambda: decoder.norm.weight
    if not config.tie_word_embeddings:
        yield "output.weight", lambda: model.get_output_embeddings().weight
    factors = _rotation_factors(decoder.rotary_emb, config)
    if factors is not None:
        yield "rope_freqs.weight", lambda: factors
    layers = decoder_layers(model)
    for index, block in enumerate(deci_blocks(plan, shape)):
        head_dim = shape.layers[block.row.index].heads.size
        for name, make in block_tensors(block, layers[block.row.index], head_dim):
            yield f"blk.{index}.{name}", make


def _rotation_factors(rotary: Any, config: Any) -> torch.Tensor | None:
    """What llama.cpp divides each frequency theta^(-2i/D) by (Llama 3's stretched rotation) [D/2]; None: by 1."""
    import torch

    rotation = getattr(config, "rope_parameters", None) or {}
    if rotation.get("rope_type", "default") != "llama3":
        return None
    stretched = rotary.inv_freq.double()
    exponents = torch.arange(len(stretched), dtype=torch.float64) / len(stretched)
    return (float(rotation["rope_theta"]) ** -exponents / stretched).float()


def _kind(tensor: torch.Tensor, dtype: str) -> GGMLQuantizationType:
    """What a tensor is written in: vectors in float32; rows that Q8_0's blocks of 32 do not fill in float16."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if tensor.ndim == 1:
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType[dtype.upper()]
    return GGMLQuantizationType.F16 if tensor.shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def _stored(shape: tuple[int, ...], kind: GGMLQuantizationType) -> tuple[tuple[int, ...], str]:
    """The shape in the file, and numpy's name for its elements."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    plain = {GGMLQuantizationType.F32: "float32", GGMLQuantizationType.F16: "float16"}
    return (shape, plain[kind]) if kind in plain else (quant_shape_to_byte_shape(shape, kind), "uint8")


def _as_written(key: str, tensor: torch.Tensor, dtype: str) -> Any:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    kind = _kind(tensor, dtype)
    values = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
    if kind == GGMLQuantizationType.F16 and np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
        raise UserError(f"{key} has a weight of {np.abs(values).max():.3g}, too large for float16; use --dtype bf16.")
    return quantize(values, kind)
