"""From a source (name, local folder, GGUF file, hub id) to a model, a tokenizer or a shape."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import MODELS, named_folder
from uniattn_pl.families.encoder_decoder import auto_model
from uniattn_pl.kernels.kernel_presence import kernel_explained
from uniattn_pl.modeling.loading.adapter_folder import is_adapter, merged, tokenizer_folder
from uniattn_pl.modeling.loading.dtypes import resolve_dtype
from uniattn_pl.modeling.loading.model_places import located
from uniattn_pl.modeling.loading.safe_folders import check_complete, refusals_explained
from uniattn_pl.modeling.loading.tokenizer_files import read_tokenizer
from uniattn_pl.modeling.loading.weight_files import (
    WEIGHT_FILES,
    check_adapter,
    check_config,
    check_weight_files,
    checked_base,
)
from uniattn_pl.startup import work_begins

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from uniattn_pl.plan import ModelShape

TRUST = "read that code, then allow it with model.trust_remote_code=true."
INFERENCE_QUANTIZATIONS = ("bitsandbytes",)  # of checkpoints; a model in another kind of weights is not read
ELSEWHERE = "load it with transformers where you trust it."


def load_model(
    source: str,
    *,
    dtype: str = "auto",
    attn_implementation: str = "sdpa",
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Load a language model for evaluation or training: a decoder, or an encoder with a decoder.

    Args:
        source: a name of `uniattn-pl list models`, a local folder, a `.gguf` file, or a hub id.
        dtype: `auto` is bfloat16 where the hardware computes in it, else float32; or a name such as `float16`.
        attn_implementation: the stock kernel that layers attend with, such as `sdpa`, `eager` or `flash_attention_2`.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run Python code that comes with a hub model.
        quantization: None, `8bit` or `4bit`: weights in so many bits, for inference.
        device: default: the CPU; weights go to another one shard by shard, never all through main memory.

    Raises:
        UserError: there is no such model, it cannot be had without a network, its files are damaged, incomplete or not
            in safetensors, it needs code that is not trusted, or bitsandbytes or its attention kernel is missing.
    """
    work_begins()
    location, options = located(source, revision)
    _prepare(location, weights=True)
    quantized = _quantized(quantization)
    kind = resolve_dtype(dtype)
    with (
        refusals_explained(source, way_out=TRUST),
        kernel_explained(source, attn_implementation, device=device, dtype=kind),
    ):
        loaded: Any = _class_of(location, trust_remote_code, **options).from_pretrained(
            location,
            output_loading_info=True,
            dtype=kind,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            **_on(device),
            **quantized,
            **options,
        )
    return _complete_model(source, *loaded)


def load_folder(
    folder: Path,
    *,
    quantization: str | None = None,
    attn_implementation: str | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Load a model folder in the dtype it was saved in; a peft adapter folder as its base with the adapter merged.

    Args:
        folder: what `save_pretrained` of a model, or of a peft model, has written.
        quantization: None, or a name of `QUANTIZATIONS`; an adapter is merged into full weights only.
        attn_implementation: default: the family's first choice.
        device: as in `load_model`.

    Raises:
        UserError: the adapter's base is not to be had, or the adapter changes a weight that the base has twice (tied);
            weights and layer plan disagree, files are damaged, incomplete or not in safetensors, the model needs code
            of its own, or bitsandbytes is missing.
    """
    work_begins()
    kernel = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    if is_adapter(folder):
        if quantization is not None:
            raise UserError(f"'{folder}' is an adapter; export it first, then load the merged model in {quantization}.")
        base = check_adapter(folder)
        model = load_folder(base, attn_implementation=attn_implementation, device=device)
        with refusals_explained(folder, way_out=ELSEWHERE, what="the adapter in "):
            return merged(folder, model)
    _prepare(str(folder), weights=True, quantizations=INFERENCE_QUANTIZATIONS)
    quantized = _quantized(quantization)
    with refusals_explained(folder, way_out=ELSEWHERE), kernel_explained(folder, attn_implementation, device=device):
        loaded: Any = _class_of(folder, False, local_files_only=True).from_pretrained(
            folder,
            output_loading_info=True,
            dtype="auto",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **_on(device),
            **quantized,
            **kernel,
        )
    return _complete_model(folder, *loaded)


def _class_of(location: str | Path, trust_remote_code: bool, **options: Any) -> Any:
    """The Auto class of a model source's config."""
    from transformers import AutoConfig

    return auto_model(AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code, **options))


def _on(device: torch.device | None) -> dict[str, Any]:
    return {} if device is None or device.type == "cpu" else {"device_map": {"": device}}


def _complete_model(source: str | Path, model: PreTrainedModel, info: dict[str, Any]) -> PreTrainedModel:
    from uniattn_pl.modeling.length_rotations import forget_lengths

    check_complete(source, info)
    forget_lengths(model)
    return model.eval()


def _quantized(name: str | None) -> dict[str, Any]:
    from uniattn_pl.modeling.loading.quantization import quantization_config

    return {} if name is None else {"quantization_config": quantization_config(name)}


def _prepare(location: str, *, weights: bool = False, quantizations: tuple[str, ...] = ()) -> None:
    """Check the files of a model folder, and make the Auto classes know its converted type."""
    from uniattn_pl.modeling.conversion.auto_classes import register_type_of

    folder = Path(location)
    if not folder.is_dir():  # a hub id
        return
    if weights:
        check_weight_files(folder, quantizations=quantizations)
    else:
        check_config(folder)
    register_type_of(folder)


def check_weights(source: str, *, revision: str | None = None) -> None:
    """Look at the files of weights that `load_model` will read, without reading them: see `check_weight_files`.

    Of a hub model those in the local cache; what is not there is checked once it is downloaded.

    Raises:
        UserError: as `load_model`.
    """
    from huggingface_hub import try_to_load_from_cache

    location = located(source, revision)[0]
    folder = Path(location)
    if not folder.is_dir():
        cached = [try_to_load_from_cache(location, name, revision=revision) for name in ("config.json", *WEIGHT_FILES)]
        if not isinstance(cached[0], str) or not any(isinstance(path, str) for path in cached[1:]):
            return
        folder = Path(cached[0]).parent
    check_weight_files(folder)


def check_folder(folder: Path) -> None:
    """Check the files that `load_folder` and `load_folder_tokenizer` read, without reading weights; the latter is done.

    Raises:
        UserError: as these.
    """
    check_weight_files(checked_base(folder), quantizations=INFERENCE_QUANTIZATIONS)
    load_folder_tokenizer(folder)


def load_tokenizer(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model source.

    Args:
        source: as of `load_model`.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run Python code that comes with the tokenizer of a hub model.

    Raises:
        UserError: as `load_model` does.
    """
    location, options = located(source, revision)
    _prepare(location)
    with refusals_explained(source, way_out=TRUST, what="the tokenizer of "):
        return read_tokenizer(location, trust_remote_code=trust_remote_code, **options)


def load_folder_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model or adapter folder. Raises UserError when it needs code of its own, or is broken."""
    place = tokenizer_folder(folder)
    if (place / "config.json").exists():
        _prepare(str(place))  # transformers looks up the model's type before it reads the tokenizer
    with refusals_explained(folder, way_out=ELSEWHERE, what="the tokenizer of "):
        return read_tokenizer(str(place), local_files_only=True, trust_remote_code=False)


def load_shape(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelShape:
    """The shape of a model source, from its config alone; of the paper's models also where the hub does not give it.

    Raises:
        UserError: as `load_model`.
    """
    from uniattn_pl.families.model_shape import shape_of

    config = load_model_config(source, revision=revision, trust_remote_code=trust_remote_code)
    with refusals_explained(source, way_out=TRUST, what="the config of "):
        try:
            return shape_of(config)
        except UserError as error:
            raise UserError(*(f"'{source}': {problem}" for problem in error.problems)) from error


def load_model_config(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a model source, for its shape; of the paper's models also where the hub does not give it.

    Raises:
        UserError: as `load_model`.
    """
    from transformers import AutoConfig

    from uniattn_pl.families.published_sizes import published_config

    file = Path(source).expanduser()
    if file.suffix == ".json" and file.is_file():
        source = str(file.parent)
    published = None if revision is not None or Path(source).is_dir() else published_config(source)
    if published is not None and source in MODELS and not named_folder(source).exists():
        return published  # converting the model takes a while, and is for those who need its weights
    try:
        location, options = located(source, revision)
        _prepare(location)
        with refusals_explained(source, way_out=TRUST, what="the config of "):
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                location, trust_remote_code=trust_remote_code, **options
            )
    except UserError:  # no network, or a licence that was not accepted (a gated model)
        if published is None:
            raise
        return published
    return config


def empty_model(
    source: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """The modules of a model source, without weights. Raises UserError as `load_model` does."""
    import torch
    from transformers import AutoConfig

    location, options = located(source, revision)
    _prepare(location)
    work_begins()
    kernel = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with (
        refusals_explained(source, way_out=TRUST),
        kernel_explained(source, attn_implementation),
        torch.device("meta"),
    ):
        config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code, **options)
        return auto_model(config).from_config(config, trust_remote_code=trust_remote_code, **kernel)
