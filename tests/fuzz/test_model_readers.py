"""Whatever is in a file of a model folder: a model, or one sentence that names the folder; never a made-up weight."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from tests.fuzz.drawn import changed_bytes, changed_json, in_bounds, scalars, used_or_refused, values, written
from tests.modeling.test_gguf_files import LLAMA, header, key
from uniattn_pl.families.catalogue import named_model
from uniattn_pl.modeling.loading.gguf_files import check_gguf
from uniattn_pl.modeling.loading.pretrained import load_folder, load_folder_tokenizer, load_shape
from uniattn_pl.modeling.loading.weight_files import check_weight_files

SOURCE = named_model("tiny-llama")
CONFIG, TOKENIZER, TOKENIZER_CONFIG = (
    json.loads((SOURCE / name).read_text()) for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
)
WEIGHTS = (SOURCE / "model.safetensors").read_bytes()
HEADER_END = 8 + struct.unpack("<Q", WEIGHTS[:8])[0]
HEADER = json.loads(WEIGHTS[8:HEADER_END])
# Large sizes are bounded, or building the model is what takes the time.
config_values = values.filter(lambda value: not isinstance(value, int) or abs(value) < 100 or value > 10**9)


@pytest.fixture
def restored(model: Path) -> Iterator[Path]:
    """The model folder, whose files are good again behind the test."""
    good = {file: file.read_bytes() for file in model.iterdir()}
    yield model
    for file in model.iterdir():
        if file not in good:
            file.unlink()
    for file, content in good.items():
        file.write_bytes(content)


@in_bounds
@given(changed_json(CONFIG, config_values).map(written) | changed_bytes([written(CONFIG)]))
def test_config_json(restored: Path, content: bytes) -> None:
    (restored / "config.json").write_bytes(content)
    used_or_refused(str(restored), lambda: load_shape(str(restored)))
    used_or_refused(str(restored), lambda: load_folder_tokenizer(restored))


@in_bounds
@given(changed_json(HEADER).map(written) | changed_bytes([WEIGHTS[8:HEADER_END]]), st.integers(-3, 3) | st.just(0))
def test_the_header_of_weights(restored: Path, head: bytes, off_by: int) -> None:
    length = max(0, len(head) + off_by)
    (restored / "model.safetensors").write_bytes(struct.pack("<Q", length) + head + WEIGHTS[HEADER_END:])
    used_or_refused(str(restored), lambda: check_weight_files(restored))


@in_bounds
@given(changed_bytes([WEIGHTS]))
def test_weights_that_pass_the_check_load_or_are_refused(restored: Path, content: bytes) -> None:
    (restored / "model.safetensors").write_bytes(content)
    used_or_refused(str(restored), lambda: load_folder(restored))


@pytest.fixture
def sharded(restored: Path) -> Path:
    tensors = load(WEIGHTS)
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        (restored / file).write_bytes(save({name: tensors[name] for name in part}, {"format": "pt"}))
    (restored / "model.safetensors").unlink()
    return restored


INDEX = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(list(HEADER)[1:4], "model-1.safetensors")}
file_names = st.sampled_from(["model-1.safetensors", "model-2.safetensors", "no.safetensors", "..", "/etc/passwd"])


@in_bounds
@given(changed_json(INDEX, values | file_names).map(written) | changed_bytes([written(INDEX)]))
def test_the_index_of_shards(sharded: Path, content: bytes) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(content)
    used_or_refused(str(sharded), lambda: check_weight_files(sharded))


@in_bounds
@given(changed_json(TOKENIZER).map(written) | changed_bytes([written(TOKENIZER)]))
def test_tokenizer_json(restored: Path, content: bytes) -> None:
    (restored / "tokenizer.json").write_bytes(content)
    used_or_refused(str(restored), lambda: load_folder_tokenizer(restored))


@in_bounds
@given(changed_json(TOKENIZER_CONFIG).map(written) | changed_bytes([written(TOKENIZER_CONFIG)]))
def test_tokenizer_config_json(restored: Path, content: bytes) -> None:
    (restored / "tokenizer_config.json").write_bytes(content)
    used_or_refused(str(restored), lambda: load_folder_tokenizer(restored))


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import get_peft_model

    from uniattn_pl.modeling.loading.pretrained import load_model
    from uniattn_pl.modeling.lora import lora_config

    target = tmp_path_factory.mktemp("adapters") / "adapter"
    base = load_model(str(model))
    get_peft_model(base, lora_config(base, rank=2)).save_pretrained(target)
    config = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(model)}))
    return target


@settings(in_bounds, max_examples=max(10, settings.default.max_examples // 10))  # each loads a model and merges it
@given(data=st.data())
def test_adapter_config_json(adapter: Path, data: st.DataObject) -> None:
    file = adapter / "adapter_config.json"
    good = file.read_bytes()
    try:
        drawn = changed_json(json.loads(good)).map(written) | changed_bytes([good])
        file.write_bytes(data.draw(drawn))
        used_or_refused(str(adapter), lambda: load_folder(adapter))
    finally:
        file.write_bytes(good)


GGUF_FILES = [header(*LLAMA), header(*LLAMA, key("tokenizer.ggml.tokens", struct.pack("<IIQ", 9, 8, 0)))]


@in_bounds
@given(changed_bytes(GGUF_FILES))
def test_gguf_headers(folder: Path, content: bytes) -> None:
    (folder / "drawn.gguf").write_bytes(content)
    used_or_refused("drawn.gguf", lambda: check_gguf(folder / "drawn.gguf"))


gguf_values = scalars.filter(lambda value: isinstance(value, str) or (isinstance(value, int) and 0 <= value < 2**32))


@in_bounds
@given(st.dictionaries(st.sampled_from(["block_count", "context_length", "rope.freq_base", "x"]), gguf_values))
def test_gguf_files_that_are_whole_are_converted_or_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, drawn: dict[str, object]
) -> None:
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(folder / "cache"))
    keys = [key(f"llama.{name}", value) for name, value in drawn.items() if "\ud83d" not in str(value)]
    (folder / "whole.gguf").write_bytes(header(LLAMA[0], LLAMA[2], *keys))
    used_or_refused("whole.gguf", lambda: load_shape(str(folder / "whole.gguf")))
