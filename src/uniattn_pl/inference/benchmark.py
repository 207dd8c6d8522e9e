"""The cost of several architectures on one machine, measured side by side: interleaved, in one process.

The first subject is the stock model with transformers' SDPA (where it has one) and one forward for the prompt;
`baseline` is the same function under this package's kernels, cache and chunked prefill. What an architecture saves is
its distance to the second; the first is what users have today.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.inference.backends import has_sdpa
from uniattn_pl.inference.timing import TimedModel, Timing, measure, peak_memory
from uniattn_pl.modeling.caches.plan_cache import CacheMismatchError
from uniattn_pl.modeling.conversion.aliased_copy import aliased_copy
from uniattn_pl.modeling.conversion.convert import converted_copy, unmodified_copy
from uniattn_pl.plan import LayerPlan, ModelShape, costs
from uniattn_pl.tracking.tags import BASELINE, STOCK

BOUND = "llmdrop on the same layers"
REFERENCE_BACKEND = "sdpa"
WARM_UP_TOKENS = 32


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    length: int
    batch_size: int
    backend: str


@dataclass
class Measured:
    """All samples of one subject at one setting, and what its plan predicts there."""

    label: str
    setting: Setting
    kv_bytes: int
    kv_retain_rate: float
    prefill_flops: int
    decode_bytes: int
    peak_memory_bytes: int | None
    samples: list[Timing] = field(default_factory=list)

    def median(self, metric: str) -> float:
        """Of `ttft_s` or `tpot_s` over the rounds."""
        return statistics.median(getattr(sample, metric) for sample in self.samples)

    def quartiles(self, metric: str) -> tuple[float, float]:
        """First and third quartile over the rounds."""
        return quartiles([getattr(sample, metric) for sample in self.samples])

    def ratios(self, metric: str, reference: Measured) -> list[float]:
        """Round by round, this subject's time over the reference's."""
        pairs = zip(self.samples, reference.samples, strict=True)
        return [getattr(sample, metric) / getattr(other, metric) for sample, other in pairs]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, raw samples included."""
        return asdict(self)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; of one value, itself twice."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def subjects_of(
    original: PreTrainedModel,
    plans: Mapping[str, LayerPlan],
    backend: str,
    *,
    chunk_size: int | None,
    bounds: bool = True,
) -> list[TimedModel]:
    """The stock model, the baseline, every plan, and the bound of each plan: its operated layers dropped.

    All use the original's weights.

    Args:
        original: the stock model; unchanged.
        plans: label -> plan.
        backend: attention kernel.
        chunk_size: queries per chunk; None: chosen by length and batch.
        bounds: whether to add the bound of each plan.
    """
    shape = shape_of(original.config)
    unmodified = LayerPlan.stock(shape)
    stock = aliased_copy(original)
    stock.set_attn_implementation(backend)
    subjects = [TimedModel(STOCK, stock, unmodified, chunked=False)]
    if backend != REFERENCE_BACKEND and has_sdpa(original):
        fused = aliased_copy(original)
        fused.set_attn_implementation(REFERENCE_BACKEND)
        subjects = [
            TimedModel(STOCK, fused, unmodified, chunked=False),
            TimedModel(f"{STOCK} {backend}", stock, unmodified, chunked=False),
        ]
    subjects.append(TimedModel(BASELINE, unmodified_copy(stock), unmodified, chunked=True, chunk_size=chunk_size))
    for label, plan in plans.items():
        subjects.append(TimedModel(label, converted_copy(stock, plan), plan, chunked=True, chunk_size=chunk_size))
    for label, plan in plans.items() if bounds else ():
        dropped = unmodified.drop(list(plan.operated), compensated=False)
        if dropped.rows not in [subject.plan.rows for subject in subjects]:
            name = BOUND if len(plans) == 1 else f"{BOUND} as {label}"
            subjects.append(
                TimedModel(name, converted_copy(stock, dropped), dropped, chunked=True, chunk_size=chunk_size)
            )
    return subjects


def run_setting(
    subjects: Sequence[TimedModel],
    setting: Setting,
    *,
    new_tokens: int,
    rounds: int,
    seed: int,
    progress: Callable[[str], None],
) -> list[Measured]:
    """Measure every subject `rounds` times, in an order that rotates, after one prefill each for its peak memory.

    Raises:
        CacheMismatchError: a cache does not hold the bytes its plan predicts.
    """
    model = subjects[0].model
    shape, device = shape_of(model.config), model.device
    generator = torch.Generator().manual_seed(seed)
    size = (setting.batch_size, setting.length)
    ids = torch.randint(0, shape.vocab_size, size, generator=generator).to(device)
    measured = []
    for subject in subjects:
        plain = replace(subject, compiled=False)
        measure(plain, ids[:, :WARM_UP_TOKENS], 2)  # what only the first forward of a process needs is not counted
    for subject in subjects:
        progress(f"{subject.label}, {setting.length} tokens, memory")
        measured.append(_predicted(subject, setting, shape, model.dtype.itemsize, peak_memory(subject, ids)))
    for number in range(rounds):
        for offset in range(len(subjects)):
            index = (number + offset) % len(subjects)
            progress(f"{subjects[index].label}, {setting.length} tokens, round {number + 1}")
            sample = measure(subjects[index], ids, new_tokens)
            _check_bytes(measured[index], sample)
            measured[index].samples.append(sample)
    return measured


def _predicted(
    subject: TimedModel, setting: Setting, shape: ModelShape, bytes_per_element: int, peak: int | None
) -> Measured:
    size = {"batch_size": setting.batch_size, "length": setting.length}
    return Measured(
        label=subject.label,
        setting=setting,
        kv_bytes=costs.kv_cache_bytes(subject.plan, shape, **size, bytes_per_element=bytes_per_element),
        kv_retain_rate=costs.kv_retain_rate(subject.plan, shape, length=setting.length),
        prefill_flops=costs.prefill_flops(subject.plan, shape, **size),
        decode_bytes=costs.decode_bytes(subject.plan, shape, **size, bytes_per_element=bytes_per_element),
        peak_memory_bytes=peak,
    )


def _check_bytes(expected: Measured, sample: Timing) -> None:
    if sample.kv_bytes != expected.kv_bytes:
        raise CacheMismatchError(
            f"{expected.label}: the cache holds {sample.kv_bytes} bytes after {expected.setting.length} tokens, "
            f"the plan predicts {expected.kv_bytes}."
        )
