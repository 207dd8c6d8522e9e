"""The models of a fit: the original while it is needed, converted copies of it, and what phases left in folders."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from uniattn_pl.config.sections.distillation_section import ORIGINAL
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.modeling.loading.dtypes import resolve_dtype
from uniattn_pl.modeling.loading.layer_offload import LayerOffload
from uniattn_pl.modeling.loading.pretrained import load_folder, load_model
from uniattn_pl.modeling.loading.sharded_weights import skeleton
from uniattn_pl.plan import LayerPlan, ModelShape, costs
from uniattn_pl.run_folder import model_folder
from uniattn_pl.training.experiment import Experiment, model_origin
from uniattn_pl.training.memory_estimate import MODEL_FRACTION, WEIGHT_DTYPES


class FitModels:
    """Loads models in the dtype the fit trains in, on this rank's device.

    Attributes:
        dtype: of the weights.
        device: where this rank computes.
        commit: at which a hub's model is loaded, whatever its branch has moved to.
        offload: brings layers to the device one by one, where a whole model leaves no room on it.
    """

    def __init__(self, experiment: Experiment, device: torch.device, commit: str | None = None) -> None:
        self.commit = commit
        self._experiment, self.config = experiment, experiment.config.model
        training = experiment.config.training
        self.device = device
        self.dtype = resolve_dtype(WEIGHT_DTYPES.get(training.precision, self.config.dtype))
        self.offload = LayerOffload(device) if _too_large(experiment.shape, self.dtype, device) else None

    @cached_property
    def original(self) -> PreTrainedModel:
        """The unmodified model, kept until `forget_original`."""
        return self._load(self.config.source, **self._origin())

    def teacher(self, name: str) -> PreTrainedModel:
        """The model of `training.distillation.teacher`, on the device: the original, or that of a folder."""
        if name == ORIGINAL:
            return self._whole(self.config.source, self.device, **self._origin())
        return self._whole(str(model_folder(Path(name))), self.device)

    def forget_original(self) -> None:
        """Give back the original's memory once calibration is over."""
        self.__dict__.pop("original", None)  # where a cached property keeps its value

    def converted(self, plan: LayerPlan) -> PreTrainedModel:
        """A fresh converted model on the original's weights, W_c zero."""
        return self._configured(converted_copy(self.original, plan))

    def load(self, folder: Path) -> PreTrainedModel:
        """The model that a phase has left, to train: in main memory, from where Lightning brings it to the device."""
        return self._configured(self._whole(str(folder), None if self.device.type == "cuda" else self.device))

    def saved(self, folder: Path) -> PreTrainedModel:
        """The same in the dtype of its files, as every command after the fit reads it."""
        kernel, device = self.config.attn_implementation, None if self.offload is not None else self.device
        return self._placed(load_folder(folder, attn_implementation=kernel, device=device))

    def alone(self, folder: Path | None) -> PreTrainedModel:
        """What a phase has left (None: the original), to compute with beside no other, in the dtype of training."""
        return self._load(self.config.source, **self._origin()) if folder is None else self._load(str(folder))

    def skeleton(self, folder: Path) -> PreTrainedModel:
        """The same without weights, for a strategy that shards."""
        kernel = self.config.attn_implementation
        return self._configured(skeleton(folder, dtype=self.dtype, attn_implementation=kernel))

    def place(self, model: nn.Module) -> None:
        """Bring a model back to where this rank computes: Lightning leaves it in main memory behind a fit."""
        model.to(self.device)

    def _origin(self) -> dict[str, Any]:
        """How the model's source is read: at the commit that the fit has begun with."""
        origin = model_origin(self._experiment.loaded)
        return {**origin, "revision": self.commit or origin["revision"]}

    def _load(self, source: str, **origin: bool | str | None) -> PreTrainedModel:
        return self._placed(self._whole(source, None if self.offload is not None else self.device, **origin))

    def _whole(self, source: str, device: torch.device | None, **origin: bool | str | None) -> PreTrainedModel:
        return load_model(
            source,
            dtype=str(self.dtype).removeprefix("torch."),
            attn_implementation=self.config.attn_implementation,
            device=device,
            **origin,  # type: ignore[arg-type]
        )

    def _placed(self, model: PreTrainedModel) -> PreTrainedModel:
        return self._configured(model if self.offload is None else self.offload.adopt(model))

    def _configured(self, model: PreTrainedModel) -> PreTrainedModel:
        """`model` as this experiment has its reuse layers get their maps."""
        if hasattr(model.config, "reuse_mode"):
            model.config.reuse_mode = self.config.reuse
            model.config.map_memory_mib = self.config.map_memory_mib
        return model


def _too_large(shape: ModelShape, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a whole model leaves no room on the device; its layers then visit it from main memory."""
    if device.type != "cuda":
        return False
    weights = costs.parameters(LayerPlan.stock(shape), shape) * dtype.itemsize
    return weights > MODEL_FRACTION * torch.cuda.get_device_properties(device).total_memory
