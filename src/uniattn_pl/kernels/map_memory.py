"""Memory for attention maps: how much one takes, how much one may take, and buffers that are taken again."""

from __future__ import annotations

from typing import Any

import torch

from uniattn_pl.kernels.stock import EAGER, backend_name
from uniattn_pl.plan.roles import TILED_MODES

GROWTH = 1.5
MAP_BYTES = {"cpu": 2**26}
MAP_BYTES_ELSEWHERE = 2**30
TILED_BYTES = 2**32  # of one map's tiles on a card: an 8B model's at 8,192 tokens take half
CHUNKS = {"cpu": 256}  # measured: 512 gains nothing and masks more of the diagonal
CHUNK_ELSEWHERE = 2048
# Where no map is kept: measured on an H100, chunks of 2,048 made 32k tokens twice as slow as one forward, since a fused
# kernel takes a mask over what came before where it could take none; this bounds what one forward's layers allocate.
CHUNK_WITHOUT_MAPS = 2**15
SMALLEST_CHUNK = 16


class MapBuffers:
    """Memory for attention maps, taken again by later layers and later forwards.

    A map lives until the last layer that reads it; a plan whose maps do not overlap needs one buffer.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._last_readers: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> MapBuffers:
        return MapBuffers()  # what is in them has been read

    def begin_forward(self) -> None:
        """Every map of the forward before is over."""
        self._last_readers = [-1] * len(self._buffers)

    def take(self, layer: int, last_reader: int, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Uninitialised memory of a shape, of the dtype and on the device of `like`, until `last_reader` is done."""
        slot = next((slot for slot, last in enumerate(self._last_readers) if last < layer), None)
        if slot is None:
            slot = len(self._buffers)
            self._buffers.append(like.new_empty(0))
            self._last_readers.append(-1)
        self._last_readers[slot] = last_reader
        size = torch.Size(shape).numel()
        buffer = self._buffers[slot]
        fits = buffer.numel() >= size and buffer.dtype == like.dtype and buffer.device == like.device
        if not fits or not may_write(buffer):
            room = max(int(buffer.numel() * GROWTH), size + size // 8)  # the next token's map is a little longer
            self._buffers[slot] = like.new_empty(0)  # given back before more is asked for
            self._buffers[slot] = buffer = like.new_empty(room)
        return buffer[:size].view(shape)


def may_write(buffer: torch.Tensor) -> bool:
    """Memory from inference mode cannot be written to outside of it."""
    return torch.is_inference_mode_enabled() or not buffer.is_inference()


def map_bytes(query: torch.Tensor, key: torch.Tensor) -> int:
    """Bytes of the attention map [B, H, L, S] of query [B, H, L, D] over key [B, Hkv, S, D]."""
    batch, heads, length, _ = query.shape
    return batch * heads * length * key.shape[-2] * query.element_size()


def map_limit(config: Any, device: torch.device) -> int:
    """Bytes one map may take: the config's `map_memory_mib`, or what suits the device."""
    limit = getattr(config, "map_memory_mib", None)
    return MAP_BYTES.get(device.type, MAP_BYTES_ELSEWHERE) if limit is None else int(limit * 2**20)


def tiled_limit(config: Any) -> int:
    """Bytes that the tiles of one map may take: the config's `map_memory_mib`, or what suits a card."""
    limit = getattr(config, "map_memory_mib", None)
    return TILED_BYTES if limit is None else int(limit * 2**20)


def automatic_chunk(
    config: Any, device: torch.device, dtype: torch.dtype, *, batch_size: int, length: int, observed: bool = False
) -> int:
    """Queries of a prompt of `length` tokens to process together, so that one attention map keeps to `map_limit`.

    A power of two, at most what keeps the matrix products of the device busy. `observed`: the cache sums maps, so that
    there are maps where otherwise there are none (`choice.decide_on_map`).
    """
    tiled = getattr(config, "reuse_mode", None) in TILED_MODES
    if device.type != "cpu" and not observed and not tiled and not _keeps_maps(config):
        return CHUNK_WITHOUT_MAPS
    heads = config.get_text_config().num_attention_heads
    per_query = batch_size * heads * length * dtype.itemsize
    most = CHUNKS.get(device.type, CHUNK_ELSEWHERE)
    limit = tiled_limit(config) if tiled else map_limit(config, device)
    fits = max(limit // max(per_query, 1), SMALLEST_CHUNK)
    return min(most, 1 << (int(fits).bit_length() - 1))


def _keeps_maps(config: Any) -> bool:
    """Whether prompts on an accelerator have maps: by eager attention, or because the user wants them kept."""
    return backend_name(config) == EAGER or getattr(config, "reuse_mode", None) == "materialise"
