"""GGUF files: converted once, into the cache folder, after a look at the whole header.

The header is walked here, and not with `gguf.GGUFReader`: beyond the end of a file that reader goes on reading nothing,
for as many rounds as a damaged count says.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.families.catalogue import convert_gguf
from uniattn_pl.file_contents import mistaken_content
from uniattn_pl.files import atomic_folder, cache_folder
from uniattn_pl.modeling.loading.safe_folders import refusals_explained
from uniattn_pl.resilience.known_digests import known_digest

# By the number of a type in the file: integers, floats and booleans as `struct` reads them.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_DIMENSIONS = 4
_LEVELS = 4  # of arrays in arrays, which no model has
# Keys of an architecture that say how large the model is, each at least 1.
_SIZES = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length")


def converted_gguf(file: Path) -> Path:
    """The folder of a GGUF file as safetensors, made on first use.

    Raises:
        UserError: there is no such file, it is damaged, cut off or something else, or transformers cannot convert it.
    """
    if not file.is_file():
        parent = file.parent if file.parent.is_dir() else Path()
        raise UserError(f"there is no file '{file}'.{did_you_mean(file.name, os.listdir(parent))}")
    folder = cache_folder() / "gguf" / f"{file.stem[:100]}-{known_digest(file)[:16]}"
    if not folder.exists():
        check_gguf(file)
        with atomic_folder(folder) as temporary, refusals_explained(file, way_out="convert it where you trust it."):
            convert_gguf(file, temporary)
    return folder


def check_gguf(file: Path) -> None:
    """Check that a GGUF file is whole: its header, and a place inside the file for every tensor.

    Raises:
        UserError: saying what is wrong.
    """
    if mistaken := mistaken_content(file):
        raise UserError(f"'{file}'{mistaken}")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _Header(data).check()
        except struct.error:
            raise UserError(f"'{file}' ends within its header, at {len(data):,} bytes; download it again.") from None
        except _DamagedError as error:
            raise UserError(f"'{file}' is no GGUF file of a model, or a damaged one: {error}.") from None


class _DamagedError(Exception):
    """What is wrong with a header."""


@dataclass
class _Header:
    """Reads a header from its beginning; `struct.error` says that the file ends before it."""

    data: mmap.mmap
    position: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    dimensions: dict[str, list[int]] = field(default_factory=dict)

    def check(self) -> None:
        if self.data[:4] != b"GGUF":
            raise _DamagedError("it does not begin with 'GGUF'")
        self.position = 4
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise _DamagedError(f"it is of version {version}; versions {_VERSIONS[0]} and {_VERSIONS[1]} are read")
        tensors, keys = self._scalar("Q"), self._scalar("Q")
        for _ in range(keys):
            key = self._text()
            self.values[key] = self._value(self._scalar("I"))
        ends = [self._tensor_end() for _ in range(tensors)]
        self._check_model()
        alignment = self.values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise _DamagedError(f"general.alignment is {alignment!r}")
        needed = -(-self.position // alignment) * alignment + max(ends, default=0)
        if needed > len(self.data):
            raise _DamagedError(f"it is cut off: its tensors need {needed:,} bytes, and it has {len(self.data):,}")

    def _check_model(self) -> None:
        family = self.values.get("general.architecture")
        if not isinstance(family, str) or not family:
            raise _DamagedError("it has no general.architecture, which says what kind of model this is")
        for name in _SIZES:
            size = self.values.get(f"{family}.{name}", 1)
            if isinstance(size, int) and not 1 <= size < 1 << 31:
                raise _DamagedError(f"{family}.{name} is {size}")
        layers = self.values.get(f"{family}.block_count", 1)
        if isinstance(layers, int) and layers > len(self.dimensions):
            raise _DamagedError(f"{family}.block_count is {layers}, but there are {len(self.dimensions)} tensors")
        width, embedding = self.values.get(f"{family}.embedding_length"), self.dimensions.get("token_embd.weight")
        if embedding is None or width not in (None, *embedding):
            raise _DamagedError(f"it has no token_embd.weight of width {width} ({family}.embedding_length)")

    def _tensor_end(self) -> int:
        """Where a tensor ends, in bytes behind the header."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, count = self._text(), self._scalar("I")
        if count > _DIMENSIONS:
            raise _DamagedError(f"tensor '{name[:80]}' has {count} dimensions")
        shape = [self._scalar("Q") for _ in range(count)]
        kind, offset = self._scalar("I"), self._scalar("Q")
        try:
            per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise _DamagedError(f"tensor '{name[:80]}' is of an unknown type, {kind}") from None
        self.dimensions[name] = shape
        return int(offset + -(-prod(shape) // per_block) * block_bytes)

    def _value(self, kind: int, level: int = 0) -> Any:
        """A value of the metadata; of an array only its length."""
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY or level == _LEVELS:
            raise _DamagedError(f"its metadata has a value of an unknown type, {kind}")
        inner, count = self._scalar("I"), self._scalar("Q")
        if inner in _SCALARS:
            self._skip(count * struct.calcsize(f"<{_SCALARS[inner]}"))
        else:
            for _ in range(count):
                self._value(inner, level + 1)
        return [count]

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.position)
        self.position += struct.calcsize(f"<{code}")
        return value

    def _text(self) -> str:
        length = self._scalar("Q")
        start = self.position
        self._skip(length)
        return self.data[start : self.position].decode("utf-8", errors="replace")

    def _skip(self, length: int) -> None:
        if self.position + length > len(self.data):
            raise struct.error
        self.position += length
