"""The config and model classes of a converted family, made from its stock classes.

A folder says `model_type: uniattn_llama` and carries its plan: without this package it is refused with
transformers' own message. Keeping `llama` would load silently with random projections.

The classes are made when a family is registered, since there is one pair per family: `ConvertedModel`, with all that
converted models do differently, in front of the family's own class.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.families.attention_kernels import FLASH_PACKAGES
from uniattn_pl.families.encoder_decoder import has_encoder
from uniattn_pl.families.inspection import MODEL_TYPE_PREFIX, decoder_of
from uniattn_pl.families.recurrent_states import READ_WHOLE, layers_with_states
from uniattn_pl.kernels.kernel_presence import check_kernel
from uniattn_pl.kernels.map_memory import automatic_chunk
from uniattn_pl.kernels.stock import PREFIX, PublishingName, publish
from uniattn_pl.modeling.caches.h2o_cache import H2OCache
from uniattn_pl.modeling.conversion.install import install
from uniattn_pl.modeling.length_rotations import rotated_for
from uniattn_pl.plan import REUSE_MODES, LayerPlan

CLASS_PREFIX = "UniAttn"
SHOWN_KEYS = 5
# A mixin: the family's class, a PreTrainedModel, stands behind it; only the type checker is told so here.
Base: Any = PreTrainedModel if TYPE_CHECKING else object


class ConvertedModel(Base):
    """What every converted model does on top of its family's class: builds its plan, checks its weights, publishes."""

    stock: type[PreTrainedModel]

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        install(self, _plan_of(config))

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """The stock one, refusing weights that the plan does not account for."""
        # Listed with the other kinds instead of transformers' own error for this one.
        kwargs["ignore_mismatched_sizes"] = True
        model, info = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        _check_complete(source, info)
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """The stock one, and what some models set in others' buffers, which are not saved (Falcon-H1).

        transformers passes over every module of a class from elsewhere that has no weight to be initialised.
        """
        super().initialize_weights()
        for model in self.modules():
            if isinstance(model, PreTrainedModel):
                model._init_weights(model)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """The stock one, weights under the names that they have here.

        transformers gives those of some families (experts, one by one) the names of the checkpoint they came from, and
        knows how to read them back for its own model types only.
        """
        super().save_pretrained(*args, **{"save_original_format": False, **kwargs})

    @property
    def layer_plan(self) -> LayerPlan:
        """The plan this model was built by."""
        return decoder_of(self).layer_plan

    def set_attn_implementation(self, implementation: str | dict[str, str], **kwargs: Any) -> None:
        """The stock one; a stock kernel would not publish, so always the function of the same name that does."""
        text = self.config.get_text_config()
        if isinstance(implementation, str) and text is self.config:
            implementation = PublishingName(implementation)
        super().set_attn_implementation(implementation, **kwargs)
        if text is not self.config:  # what is beside the text model attends as ever
            publish(text)

    def _check_and_adjust_attn_implementation(self, implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """The stock one; a kernel that is not here is refused before transformers fetches one from the hub."""
        name = None if implementation is None else str(implementation).removeprefix(PREFIX)
        check_kernel(name)
        if name in FLASH_PACKAGES and not self._supports_flash_attn:
            raise UserError(f"a {self.config.model_type} model has no {name}; use eager.")
        return super()._check_and_adjust_attn_implementation(implementation, *args, **kwargs)  # type: ignore[no-any-return]

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The stock one, non-reentrant. Raises UserError when it is asked to be reentrant."""
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            raise UserError(
                "reentrant gradient checkpointing drops the gradient of an attention map that other layers read; "
                "use use_reentrant=False."
            )
        super().activation_checkpointing_enable(activation_checkpointing_kwargs=options, **kwargs)

    def generate(self, inputs: Any = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """The stock one, long prompts in chunks unless `prefill_chunk_size` says otherwise."""
        cache, prompt = kwargs.get("past_key_values"), kwargs.get("input_ids") if inputs is None else inputs
        if isinstance(cache, H2OCache) and prompt is not None:
            cache.expect_prompt(prompt.shape[1] - int(cache.get_seq_length()))
        chunk = _prefill_chunk(self, prompt, generation_config, kwargs)
        if chunk is not None and generation_config is None:
            kwargs["prefill_chunk_size"] = chunk
        elif chunk is not None:  # transformers warns of settings in both places
            generation_config = copy.deepcopy(generation_config)
            generation_config.prefill_chunk_size = chunk
        with rotated_for(self, _longest(prompt, kwargs)):
            return super().generate(inputs, generation_config, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Any, past_key_values: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The stock one, which may start over with another cache (Phi-3, where its rotation changes); never with H2O's.

        Raises:
            UserError: H2O has given up tokens that would have to be computed again.
        """
        options = {"past_key_values": past_key_values, "inputs_embeds": inputs_embeds, **kwargs}
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **options)
        if isinstance(past_key_values, H2OCache) and prepared.get("past_key_values") is not past_key_values:
            if past_key_values.get_seq_length() > 0:
                raise UserError(
                    f"at {input_ids.shape[1]} tokens this model's rotation changes and the whole text is run again, "
                    "of which H2O has given up a part: ask for fewer new tokens, or keep the whole cache."
                )
            prepared["past_key_values"] = past_key_values
        return prepared


def make_config_class(stock: type[PreTrainedConfig], module: str) -> type[PreTrainedConfig]:
    """A config class of model type `uniattn_<type>`, as a member of the module named `module`."""
    members: dict[str, Any] = {"model_type": MODEL_TYPE_PREFIX + stock.model_type, "__module__": module}
    if "text_config" in stock.sub_configs:
        members |= {name: _of_text(name) for name in ("reuse_mode", "map_memory_mib")}
    return type(CLASS_PREFIX + stock.__name__, (stock,), members)


def _of_text(name: str) -> property:
    """A setting of attentions, which read it of the text model's config, as one of the config around it."""

    def read(config: Any) -> Any:
        return getattr(config.get_text_config(), name)

    def write(config: Any, value: Any) -> None:
        setattr(config.get_text_config(), name, value)

    return property(read, write)


def make_model_class(
    stock: type[PreTrainedModel], config_class: type[PreTrainedConfig], module: str
) -> type[PreTrainedModel]:
    """A model class that builds what its config's plan says and loads nothing else, as a member of `module`."""
    members = {"__module__": module, "config_class": config_class, "stock": stock}
    return type(CLASS_PREFIX + stock.__name__, (ConvertedModel, stock), members)


def _prefill_chunk(model: Any, prompt: Any, generation_config: Any, kwargs: dict[str, Any]) -> int | None:
    """The chunk size that suits this prompt; None where it is one chunk, nothing is cached, or the caller chose.

    Raises:
        UserError: the caller chose one for a model that reads prompts whole.
    """
    settings = generation_config or model.generation_config

    def chosen(name: str, default: Any) -> Any:
        value = kwargs.get(name)
        value = getattr(settings, name, None) if value is None else value
        return default if value is None else value

    if has_encoder(model.config):  # its prompt is the encoder's
        return None
    given = chosen("prefill_chunk_size", None)
    if layers_with_states(model.config):
        if given is not None and chosen("use_cache", True):
            raise UserError(f"prefill_chunk_size is {given}; {READ_WHOLE}")
        return None
    if prompt is None or not chosen("use_cache", True) or given is not None:
        return None
    if any(name.startswith(("pixel_", "image_", "video_", "input_features")) for name in kwargs):
        return None  # transformers gives them to a whole prompt only
    batch, length = prompt.shape[:2]
    together = batch * max(chosen("num_beams", 1), chosen("num_return_sequences", 1))
    observed = isinstance(kwargs.get("past_key_values"), H2OCache)
    chunk = automatic_chunk(
        model.config, model.device, model.dtype, batch_size=together, length=length, observed=observed
    )
    return chunk if chunk < length else None


def _longest(prompt: Any, kwargs: dict[str, Any]) -> int:
    """Tokens of the longest of the prompts [B, L], without padding where a mask tells it."""
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        return int(mask.sum(-1).max())
    given = kwargs.get("inputs_embeds") if prompt is None else prompt
    return 0 if given is None else int(given.shape[1])


def _plan_of(config: Any) -> LayerPlan:
    """The plan in a converted config, whose other own field is checked too.

    Raises:
        UserError: it has none, or one that is none.
    """
    if getattr(config, "layer_plan", None) is None:
        raise UserError(f"a config of type '{config.model_type}' needs a layer_plan; this one has none.")
    config.reuse_mode = getattr(config, "reuse_mode", REUSE_MODES[0])
    if config.reuse_mode not in REUSE_MODES:
        near = did_you_mean(str(config.reuse_mode), REUSE_MODES)
        raise UserError(f"reuse_mode is '{config.reuse_mode}' in the config.{near} Allowed: {', '.join(REUSE_MODES)}.")
    plan = LayerPlan.from_dict(config.layer_plan)
    config.layer_plan = plan.to_dict()  # a folder of a former version is saved in this one's form
    return plan


def _check_complete(source: Any, info: dict[str, Any]) -> None:
    """Refuse weights that the plan does not account for: transformers would start missing ones at random.

    Raises:
        UserError: weights are missing, more than the plan has, or of another shape.
    """
    kinds = {"missing": "missing_keys", "not in the plan": "unexpected_keys", "of another shape": "mismatched_keys"}
    problems = []
    for kind, key in kinds.items():
        # Mismatched ones come with their shapes.
        names = sorted(entry if isinstance(entry, str) else str(entry[0]) for entry in info.get(key, ()))
        if names:
            more = f" and {len(names) - SHOWN_KEYS} more" if len(names) > SHOWN_KEYS else ""
            problems.append(f"{kind}: {', '.join(names[:SHOWN_KEYS])}{more}")
    if problems:
        raise UserError(
            f"the weights in '{source}' do not belong to the layer plan in its config ({'; '.join(problems)}); "
            "save both with save_pretrained, or export the run again."
        )
