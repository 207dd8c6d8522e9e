"""Attention kernels: the source that keeps its map and the reader of one, beside sdpa, FlashAttention and the bound.

From the times follow the facts that the choice of kernels rests on (`uniattn_pl.kernels.triton_maps.measured_cards`):
whether a map that is kept is faster than one that is computed again, and from how many readers on (rows `crossover`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

import torch
from benchmarks.gpu.clock import kernel_ms
from benchmarks.gpu.result_file import CheckOptions, PartRows
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from uniattn_pl.inference.tune_kernels import READERS, SHAPES, measured_tiles
from uniattn_pl.kernels.triton_maps.kept_rows import row_attention, row_product
from uniattn_pl.kernels.triton_maps.kept_tiles import tiled_attention, tiled_product
from uniattn_pl.kernels.triton_maps.tile_layout import TileShape, untuned
from uniattn_pl.plan.card_rates import card_of_device

TILE_DTYPES = {"bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
# The largest difference from sdpa that rounding explains, of values of about 1, of which the largest is near 5.
LARGEST_ERRORS = {"bfloat16": 4e-2, "fp8": 3e-1}
TUNED_AT = 4096  # tokens
PRODUCT_SIZE, COPY_BYTES = 8192, 2**30


@dataclass(frozen=True)
class Bound:
    """What the card can do at best: products in FLOP/s, bytes read and written per second."""

    flops_per_s: float
    bytes_per_s: float

    def ms(self, flops: float, moved_bytes: float) -> float:
        """Milliseconds that this much work takes at least."""
        return 1000 * max(flops / self.flops_per_s, moved_bytes / self.bytes_per_s)


@dataclass(frozen=True)
class AttentionCase:
    """One size of attention, causal but for a single query: query [B, H, L, D], key and value [B, Hkv, S, D]."""

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    size: int
    device: str

    @cached_property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        shapes = [(self.heads, self.queries), (self.groups, self.keys), (self.groups, self.keys)]
        torch.manual_seed(0)
        made = [torch.randn(self.batch, h, s, self.size, device=self.device, dtype=dtype) for h, s in shapes]
        return made[0], made[1], made[2]

    @property
    def pairs(self) -> int:
        """Query-key pairs of all heads that are not masked."""
        one = self.keys if self.queries == 1 else self.keys * (self.keys + 1) // 2
        return self.batch * self.heads * one

    def sdpa(self, backend: SDPBackend | None = None) -> torch.Tensor:
        """PyTorch's kernel: its own choice, or one of its back ends; [B, H, L, D]."""
        query, key, value = self.tensors
        options: dict[str, Any] = {"is_causal": self.queries > 1, "enable_gqa": True}
        if backend is None:
            return scaled_dot_product_attention(query, key, value, **options)
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value, **options)

    def flash(self) -> Callable[[], Any] | None:
        """FlashAttention's own package, where it is installed."""
        if self.device != "cuda":
            return None
        name = next((name for name in ("flash_attn_interface", "flash_attn") if find_spec(name) is not None), None)
        if name is None:
            return None
        attention = __import__(name).flash_attn_func
        states = [tensor.transpose(1, 2) for tensor in self.tensors]  # [B, L, H, D]
        return lambda: attention(*states, causal=self.queries > 1)

    def moved_bytes(self, *, query: bool, key: bool) -> int:
        """Bytes of the output and the values, and of queries and keys where a kernel reads them."""
        q, k, v = self.tensors
        read = v.numel() + (q.numel() if query else 0) + (k.numel() if key else 0)
        return (q.numel() + read) * q.element_size()


def measure(rows: PartRows, options: CheckOptions) -> None:
    """What the card can do, then prompts, then decoding; every case by itself."""
    device = options.device
    reached = measured_bound(device, tiny=options.tiny)
    card = card_of_device(torch.cuda.get_device_name()) if device == "cuda" else None
    bound = reached if card is None else Bound(card.flops_per_s, card.bytes_per_s)
    rows.note(what="bound", **asdict(bound), by="data sheet" if card else "measured", measured=asdict(reached))
    shapes: dict[int, TileShape] = {}
    for case, dtype in prompts(options):
        if case.size not in shapes:
            shapes[case.size] = untuned(2 * case.size) if options.tiny else fastest_shape(case)
        facts = {"head_dim": case.size, "length": case.keys, "tile_dtype": dtype}
        rows.attempt(
            lambda c=case, s=shapes[case.size], f=facts: prefill_case(rows, bound, c, s, f),
            what="prefill kernels",
            **facts,
        )
        release(case)
    for case in steps(options):
        facts = {"head_dim": case.size, "batch": case.batch, "length": case.keys}
        rows.attempt(lambda c=case, f=facts: decode_case(rows, bound, c, f), what="decode kernels", **facts)
        release(case)


def prompts(options: CheckOptions) -> Iterator[tuple[AttentionCase, str]]:
    """Heads of Llama-3.1-8B at each size of head; the sizes that models have most first."""
    heads, groups = (4, 1) if options.tiny else (32, 8)
    lengths = [96] if options.tiny else [2**n for n in range(10, 16)]
    for size in (64,) if options.tiny else (128, 64, 256):
        for length in lengths:
            for dtype in TILE_DTYPES:
                yield AttentionCase(1, heads, groups, length, length, size, options.device), dtype


def steps(options: CheckOptions) -> Iterator[AttentionCase]:
    """One query over a cache."""
    if options.tiny:
        yield AttentionCase(2, 4, 1, 1, 96, 64, options.device)
        return
    for batch in (1, 8, 32):
        for length in (1024, 8192, 32768):
            yield AttentionCase(batch, 32, 8, 1, length, 128, options.device)
    for size in (64, 256):
        yield AttentionCase(8, 32, 8, 1, 8192, size, options.device)


def fastest_shape(like: AttentionCase) -> TileShape:
    """The tiles by which a Superblock takes least time at one length, as `bench.tune_kernels` finds them."""
    case = replace(like, queries=TUNED_AT, keys=TUNED_AT)
    shapes = (untuned(2 * case.size),) if case.size > 128 else SHAPES[: 3 if case.size < 128 else len(SHAPES)]
    return measured_tiles("", *case.tensors, rounds=3, shapes=shapes).shape


def prefill_case(rows: PartRows, bound: Bound, case: AttentionCase, shape: TileShape, facts: dict[str, Any]) -> None:
    """Times of one prompt, how exact the kernels are, and from how many readers on keeping the map wins."""
    query, key, value = case.tensors
    stock_ms = kernel_ms(case.sdpa, case.device)
    flash_ms = kernel_ms(lambda: case.sdpa(SDPBackend.FLASH_ATTENTION), case.device)
    package = case.flash()
    package_ms = None if package is None else kernel_ms(package, case.device)
    options: dict[str, Any] = {"tile_dtype": TILE_DTYPES[facts["tile_dtype"]], "shape": shape}
    output, tiled_map = tiled_attention(query, key, value, **options)
    exact = case.sdpa().transpose(1, 2).float()  # [B, L, H, D]
    error = (output.float() - exact).abs().max().item()
    reader_error = (tiled_product(tiled_map, value).float() - exact).abs().max().item()
    reader_ms = kernel_ms(partial(tiled_product, tiled_map, value), case.device)
    map_bytes = int(tiled_map.nbytes)
    del tiled_map, output, exact  # the source makes another map
    source_ms = kernel_ms(lambda: tiled_attention(query, key, value, **options), case.device)
    flops = 2 * case.pairs * case.size
    rows.note(
        what="prefill kernels",
        **facts,
        sdpa_ms=stock_ms,
        flash_ms=flash_ms,
        flash_package_ms=package_ms,
        source_ms=source_ms,
        reader_ms=reader_ms,
        source_bound_ms=bound.ms(2 * flops, case.moved_bytes(query=True, key=True) + map_bytes),
        reader_bound_ms=bound.ms(flops, case.moved_bytes(query=False, key=False) + map_bytes),
        reader_over_flash=reader_ms / flash_ms,
        map_bytes=map_bytes,
        source_error=error,
        reader_error=reader_error,
    )
    times = crossover(stock_ms, source_ms, reader_ms)
    dtype = str(query.dtype).removeprefix("torch.")
    rows.note(what="crossover", **facts, dtype=dtype, shape=asdict(shape), **times)
    if max(error, reader_error) > LARGEST_ERRORS[facts["tile_dtype"]]:
        raise ValueError(f"the kernels differ from sdpa by {max(error, reader_error):.2g}")


def crossover(stock_ms: float, source_ms: float, reader_ms: float) -> dict[str, Any]:
    """A Superblock kept and replayed, which is faster, and from how many readers on keeping wins (None: never)."""
    kept, replayed = source_ms + READERS * reader_ms, (1 + READERS) * stock_ms
    least = None
    if reader_ms < stock_ms:
        # source + n * reader < (1 + n) * stock
        least = max(1, int((source_ms - stock_ms) // (stock_ms - reader_ms)) + 1)
    of_one = {"stock_ms": stock_ms, "source_ms": source_ms, "reader_ms": reader_ms, "least_readers": least}
    of_a_superblock = {"readers": READERS, "kept_ms": kept, "replayed_ms": replayed}
    return {**of_one, **of_a_superblock, "faster": "tiles" if kept < replayed else "replay"}


def decode_case(rows: PartRows, bound: Bound, case: AttentionCase, facts: dict[str, Any]) -> None:
    """Times of one token of every sequence of a batch."""
    query, key, value = case.tensors
    output, row_map = row_attention(query, key, value)
    exact = case.sdpa().transpose(1, 2).float()
    error = max(
        (output.float() - exact).abs().max().item(), (row_product(row_map, value).float() - exact).abs().max().item()
    )
    package = case.flash()
    row_bytes = 4 * case.pairs  # logits in float32
    rows.note(
        what="decode kernels",
        **facts,
        sdpa_ms=kernel_ms(case.sdpa, case.device),
        flash_package_ms=None if package is None else kernel_ms(package, case.device),
        source_ms=kernel_ms(lambda: row_attention(query, key, value), case.device),
        reader_ms=kernel_ms(lambda: row_product(row_map, value), case.device),
        source_bound_ms=bound.ms(4 * case.pairs * case.size, case.moved_bytes(query=True, key=True) + row_bytes),
        reader_bound_ms=bound.ms(2 * case.pairs * case.size, case.moved_bytes(query=False, key=False) + row_bytes),
        error=error,
    )
    if error > LARGEST_ERRORS["bfloat16"]:
        raise ValueError(f"the kernels differ from sdpa by {error:.2g}")


def release(case: AttentionCase) -> None:
    """Give the tensors of a case back."""
    vars(case).pop("tensors", None)
    if case.device == "cuda":
        torch.cuda.empty_cache()


def measured_bound(device: str, *, tiny: bool) -> Bound:
    """What a large product in bfloat16 and a copy reach."""
    size, copied = (256, 2**20) if tiny else (PRODUCT_SIZE, COPY_BYTES)
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product_s = kernel_ms(lambda: matrix @ matrix, device) / 1000
    copy_s = kernel_ms(lambda: target.copy_(source), device) / 1000
    return Bound(2 * size**3 / product_s, 2 * copied / copy_s)
