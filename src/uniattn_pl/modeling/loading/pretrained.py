"""From a source (name, local folder, GGUF file, hub id) to a model, a tokenizer or a shape."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.families.catalogue import MODELS, convert_gguf, named_folder, named_model, no_such_model
from uniattn_pl.files import atomic_folder, cache_folder
from uniattn_pl.modeling.loading.safe_folders import check_adapter, check_shards, refusals_explained

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from uniattn_pl.plan import ModelShape

HUB_TIMEOUT_S = 5.0
ADAPTER_FILE = "adapter_config.json"
TRUST = "read that code, then allow it with model.trust_remote_code=true."
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
    """Load a causal language model for evaluation or training.

    Args:
        source: a name of `MODELS`, a local folder, a `.gguf` file, or a hub id.
        dtype: `auto` is bfloat16 where the hardware computes in it, else float32.
        attn_implementation: `sdpa` or `eager`.
        quantization: None, or a name of `QUANTIZATIONS`: weights in 8 or 4 bits, for inference.
        device: default: the CPU; weights go to another one shard by shard, never all through main memory.

    Raises:
        UserError: there is no such model, it cannot be had without a network, its weights are not in safetensors, it
            needs code that is not trusted, or bitsandbytes is missing.
    """
    from transformers import AutoModelForCausalLM

    location, options = _locate(source, revision)
    _prepare(location)
    try:
        with refusals_explained(source, way_out=TRUST):
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                location,
                dtype=resolve_dtype(dtype),
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                **({} if device is None or device.type == "cpu" else {"device_map": {"": device}}),
                **_quantized(quantization),
                **options,
            )
    except ValueError as error:
        # transformers' own word for a family without this kernel; soft-capped attention has no sdpa
        if "does not support an attention implementation" not in str(error):
            raise
        raise UserError(
            f"model '{source}' has no attention implementation '{attn_implementation}'; "
            "set model.attn_implementation=eager."
        ) from error
    return model.eval()


def load_folder(folder: Path, *, quantization: str | None = None) -> PreTrainedModel:
    """Load a model folder in the dtype it was saved in; a peft adapter folder as its base with the adapter merged.

    Args:
        folder: what `save_pretrained` of a model, or of a peft model, has written.
        quantization: None, or a name of `QUANTIZATIONS`; an adapter is merged into full weights only.

    Raises:
        UserError: the adapter's base is not to be had, weights and layer plan disagree, weights are not in
            safetensors, the model needs code of its own, or bitsandbytes is missing.
    """
    from transformers import AutoModelForCausalLM

    if not (folder / ADAPTER_FILE).is_file():
        _prepare(str(folder))
        with refusals_explained(folder, way_out=ELSEWHERE):
            return AutoModelForCausalLM.from_pretrained(
                folder,
                dtype="auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                **_quantized(quantization),
            ).eval()
    if quantization is not None:
        raise UserError(f"'{folder}' is an adapter; export it first, then load the merged model in {quantization}.")
    from peft import PeftConfig, PeftModel

    check_adapter(folder)
    base = Path(str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path))
    if not (base / "config.json").is_file():
        raise UserError(f"the adapter in '{folder}' belongs to the model folder '{base}', which is not there.")
    return PeftModel.from_pretrained(load_folder(base), str(folder)).merge_and_unload().eval()


def _quantized(name: str | None) -> dict[str, Any]:
    from uniattn_pl.modeling.loading.quantization import quantization_config

    return {} if name is None else {"quantization_config": quantization_config(name)}


def _prepare(location: str) -> None:
    """Make the Auto classes know the converted type of a model folder, and check where its weights are."""
    from uniattn_pl.modeling.conversion.auto_classes import register_type_of

    if (Path(location) / "config.json").is_file():
        register_type_of(Path(location))
        check_shards(Path(location))


def load_tokenizer(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model source. Raises UserError as `load_model` does."""
    from transformers import AutoTokenizer

    location, options = _locate(source, revision)
    with refusals_explained(source, way_out=TRUST):
        return AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code, **options)


def load_folder_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model or adapter folder. Raises UserError when it needs code of its own."""
    from transformers import AutoTokenizer

    with refusals_explained(folder, way_out=ELSEWHERE):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_shape(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelShape:
    """The shape of a model source, from its config alone; of the paper's models also where the hub does not give it.

    Raises:
        UserError: as `load_model`.
    """
    from transformers import AutoConfig

    from uniattn_pl.families.model_shape import shape_of
    from uniattn_pl.families.published_sizes import published_config

    published = None if revision is not None or Path(source).is_dir() else published_config(source)
    if published is not None and source in MODELS and not named_folder(source).exists():
        return shape_of(published)  # converting the model takes a while, and is for those who need its weights
    try:
        location, options = _locate(source, revision)
        _prepare(location)
        with refusals_explained(source, way_out=TRUST):
            config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code, **options)
    except (UserError, OSError):  # no network, or a licence that was not accepted (a gated model)
        if published is None:
            raise
        config = published
    return shape_of(config)


def empty_model(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """The modules of a model source, without weights. Raises UserError as `load_model` does."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    location, options = _locate(source, revision)
    _prepare(location)
    config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code, **options)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def resolve_dtype(dtype: str) -> torch.dtype:
    """`auto` takes bfloat16 only where it is in hardware: emulated, it is slower than float32."""
    import torch

    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    return torch.bfloat16 if computes_in_bfloat16() else torch.float32


def computes_in_bfloat16() -> bool:
    """Whether this machine's GPU, or its CPU where it has none, has bfloat16 in hardware."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _locate(source: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """What to hand to `from_pretrained`, and with which options."""
    if source in MODELS:
        return str(named_model(source)), {"local_files_only": True}
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return str(_converted_gguf(path)), {"local_files_only": True}
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UserError(f"model folder '{source}' has no config.json, so it is not a transformers model.")
        return str(path), {"local_files_only": True}
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1
    if looks_local:
        raise UserError(no_such_model(source))
    return source, {"revision": revision, "local_files_only": _only_cached(source, revision)}


def _converted_gguf(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"there is no file '{file}'.{did_you_mean(file.name, os.listdir(_existing(file.parent)))}")
    # Size and time of change make a replaced file a new model.
    stat = file.stat()
    folder = cache_folder() / "gguf" / f"{file.stem}-{stat.st_size}-{stat.st_mtime_ns}"
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            convert_gguf(file, temporary)
    return folder


def _existing(folder: Path) -> Path:
    return folder if folder.is_dir() else Path()


def _only_cached(source: str, revision: str | None) -> bool:
    """Whether to read a hub model from the local cache only; UserError when it is neither there nor reachable."""
    from huggingface_hub import constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE and _hub_answers(constants.ENDPOINT):
        return False
    if isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
        return True
    raise UserError(
        f"model '{source}' is not in the local cache and {constants.ENDPOINT} cannot be reached. With a network, "
        f"fetch it once with: hf download {source}. Or copy its folder here and set model.source to that folder."
    )


@cache
def _hub_answers(endpoint: str) -> bool:
    """One short request instead of a download's stack of retries, and one for all points of a sweep."""
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
    except HTTPError:
        return True
    except (URLError, OSError):
        return False
    return True
