"""Models larger than their device: the decoder layers live in main memory and visit it while they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from uniattn_pl.families.inspection import decoder_layers

# The same layer of two models, and what each came from.
CAPACITY = 4


class LayerOffload:
    """Brings a decoder layer to the device when it is called; those used last stay, the others go back.

    Weights read from safetensors in their own dtype are pages of the files, in common to all ranks of a machine; a
    layer goes back to them unless it was written to. Models on the same weights must be brought by the same offload.

    Args:
        device: where layers compute.
        capacity: layers on it at once.
    """

    def __init__(self, device: torch.device, capacity: int = CAPACITY) -> None:
        self.device, self.capacity = device, capacity
        self.layers: list[nn.Module] = []
        self._homes: dict[nn.Parameter, tuple[torch.Tensor, int]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerOffload:
        return self  # a copied model's hooks: its layers have the original's weights

    def adopt(self, model: PreTrainedModel) -> PreTrainedModel:
        """Let the layers of `model` visit; the rest of it (embeddings, final norm) moves to the device for good."""
        layers = decoder_layers(model)
        visiting = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
        for tensor in (*model.parameters(), *model.buffers()):
            if id(tensor) not in visiting:
                tensor.data = tensor.data.to(self.device)
        for layer in layers:
            layer.register_forward_pre_hook(self.bring)
        return model

    def bring(self, layer: nn.Module, _: Any = None) -> None:
        """Put a layer on the device, and the ones used longest ago back where they were."""
        self.layers = [*(other for other in self.layers if other is not layer), layer]
        for parameter in layer.parameters():
            if parameter.device != self.device:
                host = parameter.data
                parameter.data = host.to(self.device)
                self._homes[parameter] = host, parameter._version
        leaving, self.layers = self.layers[: -self.capacity], self.layers[-self.capacity :]
        staying = {id(parameter) for other in self.layers for parameter in other.parameters()}
        for parameter in (p for other in leaving for p in other.parameters() if id(p) not in staying):
            self._send_home(parameter)

    def _send_home(self, parameter: nn.Parameter) -> None:
        host, version = self._homes.pop(parameter, (None, None))
        unwritten = host is not None and parameter._version == version
        parameter.data = host if unwritten else parameter.data.to("cpu")  # type: ignore[assignment]
