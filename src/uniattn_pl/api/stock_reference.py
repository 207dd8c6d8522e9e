"""The original of a converted model, loaded once more from where the model came from."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import decoder_layers
from uniattn_pl.kernels.stock import backend_name
from uniattn_pl.modeling.conversion.convert import plan_of
from uniattn_pl.modeling.loading.pretrained import load_model

ADVICE = "give original=MODEL, the stock model on the same weights"


def stock_reference(model: PreTrainedModel) -> PreTrainedModel:
    """Load what a model was before its conversion, in its dtype and on its device.

    Raises:
        UserError: nothing says where it came from, that is a converted model itself, or its weights are others by now.
    """
    place = str(getattr(model, "name_or_path", "") or "")
    if not place:
        raise UserError(f"this model was made without a source to load its original from; {ADVICE}.")
    original = load_model(
        place,
        dtype=str(model.dtype).removeprefix("torch."),
        attn_implementation=backend_name(model.config.get_text_config()),
        revision=getattr(model.config, "_commit_hash", None),
        device=model.device,
    )
    if plan_of(original).operated:
        raise UserError(f"'{place}', which this model was loaded from, is converted, too; {ADVICE}.")
    changed = _changed_weights(original, model)
    if changed:
        raise UserError(
            f"{len(changed)} weights beside this model's operated layers are not those of '{place}', among them "
            f"{changed[0]}: it was trained since it was converted, or came from elsewhere. Calibrate before training, "
            f"or {ADVICE}."
        )
    return original


@torch.no_grad()
def _changed_weights(original: PreTrainedModel, model: PreTrainedModel) -> list[str]:
    """Weights outside of the operated layers that are not the original's: a calibration itself changes none of them."""
    layers, before = decoder_layers(model), dict(original.named_parameters())
    operated = {id(weight) for index in plan_of(model).operated for weight in layers[index].parameters()}
    return [
        name
        for name, weight in model.named_parameters()
        if id(weight) not in operated and not (name in before and torch.equal(weight, before[name]))
    ]
