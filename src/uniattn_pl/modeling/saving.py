"""Own model types, so that `save_pretrained` and the Auto classes treat a converted model as an ordinary one.

A folder says `model_type: uniattn_llama` and carries its plan: without this package it is refused with
transformers' own message. Keeping `llama` would load silently with random projections.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from uniattn_pl.costs import kv_retain_rate, parameters
from uniattn_pl.errors import UserError
from uniattn_pl.files import atomic_folder
from uniattn_pl.modeling.attention import PREFIX
from uniattn_pl.modeling.families import FAMILIES, MODEL_TYPE_PREFIX, shape_of
from uniattn_pl.modeling.install import install
from uniattn_pl.plan import LayerPlan

_CLASSES: dict[type, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {}


def auto_classes(stock: Any) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """The (config, model) classes of converted models of a stock class, made and registered on first use."""
    if stock not in _CLASSES:
        config = _config_class(stock.config_class)
        model = _model_class(stock, config)
        AutoConfig.register(config.model_type, config)
        AutoModelForCausalLM.register(config, model)
        # Pickling and save_pretrained look classes up by module and name.
        globals()[config.__name__], globals()[model.__name__] = config, model
        _CLASSES[stock] = (config, model)
    return _CLASSES[stock]


def register_auto_classes() -> None:
    """Register the converted types of every supported family with transformers' Auto classes."""
    for family in FAMILIES:
        stock_config = AutoConfig.for_model(family)
        auto_classes(MODEL_FOR_CAUSAL_LM_MAPPING[type(stock_config)])


def _config_class(stock: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    model_type = MODEL_TYPE_PREFIX + stock.model_type
    return type("UniAttn" + stock.__name__, (stock,), {"model_type": model_type, "__module__": __name__})


def _model_class(stock: type[PreTrainedModel], config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    def __init__(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        install(self, LayerPlan.from_dict(config.layer_plan))

    def layer_plan(self: PreTrainedModel) -> LayerPlan:
        return self.get_decoder().layer_plan

    def set_attn_implementation(self: PreTrainedModel, implementation: str | dict[str, str], **kwargs: Any) -> None:
        # A stock kernel would not publish: always go through the wrapper of the same name.
        if isinstance(implementation, str):
            implementation = PREFIX + implementation.removeprefix(PREFIX)
        stock.set_attn_implementation(self, implementation, **kwargs)

    def activation_checkpointing_enable(
        self: PreTrainedModel, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            raise UserError(
                "reentrant gradient checkpointing drops the gradient of a shared attention map; "
                "use use_reentrant=False."
            )
        stock.activation_checkpointing_enable(self, activation_checkpointing_kwargs=options, **kwargs)

    members = {
        "__init__": __init__,
        "__module__": __name__,
        "config_class": config_class,
        "layer_plan": property(layer_plan),
        "set_attn_implementation": set_attn_implementation,
        "activation_checkpointing_enable": activation_checkpointing_enable,
    }
    return type("UniAttn" + stock.__name__, (stock,), members)


def export(source: Path, target: Path, *, overwrite: bool = False) -> Path:
    """Write the model in `source` as a folder of its own: safetensors, tokenizer, and a card that draws its plan.

    Args:
        source: a model folder, converted or stock (a run's `final/`).
        target: the folder to write; it appears only when complete.
        overwrite: replace an existing target.

    Raises:
        UserError: the target exists, or lies inside the source.
    """
    from transformers import AutoTokenizer

    if target.exists() and not overwrite:
        raise UserError(f"'{target}' exists; choose another --to, or add --overwrite to replace it.")
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise UserError(f"'{target}' lies inside the model folder '{source}'; choose a folder outside of it.")
    register_auto_classes()
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", local_files_only=True)
    with atomic_folder(target) as temporary:
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(temporary)
        (temporary / "README.md").write_text(model_card(model), encoding="utf-8")
    return target


def model_card(model: PreTrainedModel) -> str:
    """A Markdown card: the model's layer plan, its cache relative to the unmodified model, how to load it."""
    config = model.config
    data = getattr(config, "layer_plan", None)
    plan = LayerPlan.from_dict(data) if data else LayerPlan.unmodified(config.num_hidden_layers)
    shape = shape_of(config)
    rates = [f"{length} tokens: {kv_retain_rate(plan, shape, length=length):.2%}" for length in (512, 8192)]
    first_import = "import uniattn_pl  # registers the model type\n" if plan.operated else ""
    return f"""---
library_name: transformers
tags: [uniattn_pl]
---
# {config.model_type} with a layer plan

{parameters(plan, shape):,} parameters. KV cache relative to the unmodified model: {"; ".join(rates)}.

```
{plan.draw()}
```

```python
{first_import}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("this folder")
```
"""
