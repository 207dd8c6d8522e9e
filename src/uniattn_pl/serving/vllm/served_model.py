"""The model that vLLM builds of a folder with a layer plan."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.utils import AutoWeightsLoader

from uniattn_pl.serving.vllm.layout import ServedLayout
from uniattn_pl.serving.vllm.served_layers import ServedDecoderLayer

OF_LAYER = re.compile(r"layers\.(\d+)\.self_attn\.([qv])_proj\.")


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "inputs_embeds": 0})
class ServedModel(LlamaModel):
    """The decoder: vLLM's Llama, whose layers the plan makes, for every family of the same anatomy."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        workers = vllm_config.parallel_config.tensor_parallel_size
        self.layout = ServedLayout(vllm_config.model_config.hf_config, prefix, workers)
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=partial(ServedDecoderLayer, self.layout))

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any,
        inputs_embeds: torch.Tensor | None = None,
    ) -> Any:
        """The last layer's states [T, d]; what layers publish for each other lives for this forward."""
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, published={})

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a folder's weights under their own names, and return those of the parameters they went into."""
        named = ((self._served_name(name), weight) for name, weight in weights)
        loaded: set[str] = AutoWeightsLoader(self).load_weights(named, mapper=self.hf_to_vllm_mapper)
        return loaded

    def _served_name(self, name: str) -> str:
        """Every q_proj and v_proj goes into a fused projection of vLLM's, but those of a layer that has none."""
        found = OF_LAYER.search(name)
        if found is None or self.layout.plan.rows[int(found[1])].traits.complete:
            return name
        return name.replace(f".{found[2]}_proj.", f".own_{found[2]}.")


class ServedForCausalLM(LlamaForCausalLM):
    """The causal language model: `ServedModel` and vLLM's output embedding."""

    def _init_model(self, vllm_config: VllmConfig, prefix: str = "", layer_type: Any = None) -> ServedModel:
        return ServedModel(vllm_config=vllm_config, prefix=prefix)
