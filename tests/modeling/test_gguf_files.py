"""GGUF files that are damaged, cut off or something else: one sentence, and nothing half-made stays behind."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from tests.parity import stock_llama
from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging

from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import byte_tokenizer, convert_gguf
from uniattn_pl.modeling.loading.gguf_files import check_gguf
from uniattn_pl.modeling.loading.pretrained import load_shape, load_tokenizer

UINT32, STRING, ARRAY = 4, 8, 9
ENDLESS = struct.pack("<IIQ", ARRAY, UINT32, 1 << 60)


def text(value: str) -> bytes:
    encoded = value.encode(errors="surrogatepass")  # drawn texts may be no UTF-8
    return struct.pack("<Q", len(encoded)) + encoded


def key(name: str, value: object) -> bytes:
    if isinstance(value, bytes):
        return text(name) + value
    if isinstance(value, str):
        return text(name) + struct.pack("<I", STRING) + text(value)
    return text(name) + struct.pack("<II", UINT32, value)


def header(*keys: bytes, version: int = 3, tensors: tuple[tuple[int, ...], ...] = ((8, 2),), data: int = 64) -> bytes:
    names = ["token_embd.weight", *(f"tensor.{number}" for number in range(1, len(tensors)))]
    infos = b"".join(
        text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0, 0)
        for name, shape in zip(names, tensors, strict=True)
    )
    start = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + infos
    return start + b"\0" * (-len(start) % 32) + b"\0" * data


LLAMA = (key("general.architecture", "llama"), key("llama.block_count", 1), key("llama.embedding_length", 8))
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty (0 bytes)"),
    "a web page": (b"<!DOCTYPE html><html></html>", "is a web page"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "something else": (b"hello, world, this is nothing", "it does not begin with 'GGUF'"),
    "only its name": (b"GGUF", "ends within its header, at 4 bytes"),
    "cut in the header": (header(*LLAMA)[:60], "ends within its header, at 60 bytes"),
    "cut in the data": (header(*LLAMA)[:-1], "is cut off: its tensors need"),
    "another version": (header(*LLAMA, version=7), "it is of version 7; versions 2 and 3 are read"),
    "an endless array": (header(key("x", ENDLESS)), "ends within its header"),
    "an unknown kind": (header(key("x", struct.pack("<I", 99))), "its metadata has a value of an unknown type, 99"),
    "no architecture": (header(), "it has no general.architecture"),
    "no layers": (header(LLAMA[0], key("llama.block_count", 0)), "llama.block_count is 0"),
    "a million layers": (header(LLAMA[0], key("llama.block_count", 1 << 20)), "is 1048576, but there are 1 tensors"),
    "another width": (header(*LLAMA[:2], key("llama.embedding_length", 9)), "no token_embd.weight of width 9"),
    "many dimensions": (header(*LLAMA, tensors=((1,) * 5,)), "has 5 dimensions"),
    "an endless tensor": (header(*LLAMA, tensors=((8, 1 << 60),)), "is cut off"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_cannot_be_a_model_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    for load in (load_shape, load_tokenizer):
        with pytest.raises(UserError) as caught:
            load(str(file))
        assert message in str(caught.value)
        assert str(file) in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "keys",
    [LLAMA, (key("general.architecture", "unheard-of"), key("unheard-of.block_count", 1))],
    ids=["a model without most of its tensors", "an unknown architecture"],
)
def test_what_transformers_does_not_convert_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[Any, ...]
) -> None:
    monkeypatch.setenv("UNIATTN_PL_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(header(*keys))
    check_gguf(file)
    with pytest.raises(UserError, match=r"model\.gguf' cannot be loaded: "):
        load_shape(str(file))
    assert not list((tmp_path / "cache" / "gguf").iterdir())


def test_a_conversion_says_one_line_and_draws_no_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reads(*_: Any, **__: Any) -> tuple[Any, dict[str, list[str]]]:
        for bar in (modeling_gguf_pytorch_utils.tqdm, logging.tqdm):
            list(bar(range(3), desc="Converting"))
        return stock_llama(), {"missing_keys": []}

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", reads)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: byte_tokenizer())
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "folder")
    assert capsys.readouterr().err == "note: writing tiny.gguf as safetensors, once; this takes a moment\n"
    assert (tmp_path / "folder/model.safetensors").is_file()
    reads()
    assert "Converting" in capsys.readouterr().err, "bars of others are as they were"
