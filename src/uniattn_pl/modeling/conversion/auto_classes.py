"""The converted model types, registered with transformers' Auto classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import auto_model, language_model, sees_images
from uniattn_pl.families.inspection import ENCODER_DECODERS, FAMILIES, MODEL_TYPE_PREFIX, stock_model_type
from uniattn_pl.modeling.conversion.converted_classes import ConvertedModel, make_config_class, make_model_class

_CLASSES: dict[type, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {}


def auto_classes(stock: Any) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """The (config, model) classes of converted models of a stock class, made and registered on first use."""
    if stock not in _CLASSES:
        config = make_config_class(stock.config_class, __name__)
        model = make_model_class(stock, config, __name__)
        AutoConfig.register(config.model_type, config)
        auto_model(config).register(config, model)
        if sees_images(config) and stock.config_class in MODEL_FOR_CAUSAL_LM_MAPPING:  # Gemma-3's stands in both
            AutoModelForCausalLM.register(config, model)
        AutoModel.register(config, _as_base_model(config, model))
        AutoModelForSequenceClassification.register(config, _without_head(config, model))
        # Pickling and save_pretrained look classes up by module and name.
        globals()[config.__name__], globals()[model.__name__] = config, model
        _CLASSES[stock] = (config, model)
    return _CLASSES[stock]


def _as_base_model(config: type[PreTrainedConfig], model: type[PreTrainedModel]) -> type:
    """What AutoModel loads of a converted type: the base model inside its language model."""

    def load(cls: type, *args: Any, **kwargs: Any) -> Any:
        return model.from_pretrained(*args, **kwargs).base_model

    def make(cls: type, given: PreTrainedConfig, **kwargs: Any) -> Any:
        return model._from_config(given, **kwargs).base_model

    return _stand_in(f"{model.__name__}Base", config, load, make)


def _without_head(config: type[PreTrainedConfig], model: type[PreTrainedModel]) -> type:
    """What AutoModelForSequenceClassification finds of a converted type: why there is none."""

    def refuse(cls: type, *args: Any, **kwargs: Any) -> Any:
        raise UserError(
            f"a model of type {config.model_type} has no head for classification: only language models are converted. "
            "Load it with AutoModel, and put your head on its last_hidden_state."
        )

    return _stand_in(f"{model.__name__}WithoutHead", config, refuse, refuse)


def _stand_in(name: str, config: type[PreTrainedConfig], load: Any, make: Any) -> type:
    return type(
        name, (), {"config_class": config, "from_pretrained": classmethod(load), "_from_config": classmethod(make)}
    )


def check_class(model: PreTrainedModel) -> None:
    """Check that a model, stock or converted, is what `families.encoder_decoder.auto_model` builds of its type.

    Its class is registered for the whole process and written into folders: a base model, another head or a subclass in
    its place would load as something else.

    Raises:
        UserError: it is another class.
    """
    expected = language_model(stock_model_type(model.config))
    if type(model) is not expected and not isinstance(model, ConvertedModel):
        wanted = expected.__name__ if expected else "none that transformers knows"
        raise UserError(
            f"a {type(model).__name__} cannot be converted, only the language model of its type ({wanted}): "
            "not a base model, one with another head, one wrapped by peft, or a subclass. Load it with "
            "uniattn_pl.load_model or its Auto class; after a conversion, `.model` is its base model."
        )


def register_family(model_type: str) -> None:
    """Register the converted type of one stock model type, so that the Auto classes load it.

    Args:
        model_type: as in the `config.json` of the stock model, such as "arcee".

    Raises:
        UserError: transformers has no language model of that type.
    """
    stock = language_model(model_type)
    if stock is None:
        raise UserError(f"transformers has no language model of type '{model_type}'.")
    auto_classes(stock)


def register_auto_classes() -> None:
    """Register the converted types of every tested family."""
    for model_type in (*FAMILIES, *ENCODER_DECODERS):
        register_family(model_type)


def register_type_of(folder: Path) -> None:
    """Register the converted type that a model folder's config names, also of a family that is not in the table."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_type = str(config.get("model_type", ""))
    if model_type.startswith(MODEL_TYPE_PREFIX):
        register_family(model_type.removeprefix(MODEL_TYPE_PREFIX))
