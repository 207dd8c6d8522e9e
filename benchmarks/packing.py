"""Tokens per second of training on packed sequences against padded ones, and the padding of each.

    python benchmarks/packing.py rows.json --rounds 4

Padded are the loader's own micro batches of single rows, grouped by length; packed are sequences of `--max-length`,
as many in a micro batch as hold about the same number of tokens. Everything runs in one process; every round times
forward and backward of one micro batch of each kind, in an order that turns, so that a slow moment of the machine hits
both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import InstructionDataModule
from uniattn_pl.losses.response_loss import ScoredTokens, summed_response_loss
from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer

PADDED, PACKED = "padded", "packed"
Batch = dict[str, torch.Tensor]


def main() -> None:
    options = arguments()
    padded = report_padding(PADDED, epoch(options, options.batch_size, packing=False))
    tokens = sum(int(batch["num_tokens"]) for batch in padded) / len(padded)
    packs = max(1, round(tokens / options.max_length))
    packed = report_padding(PACKED, epoch(options, packs, packing=True))
    model = load_model(options.model, dtype=options.dtype).train()
    batches = {PADDED: sample(padded, options.rounds + 1), PACKED: sample(packed, options.rounds + 1)}
    rates: dict[str, list[float]] = {kind: [] for kind in batches}
    for number in range(options.rounds + 1):
        kinds = [PADDED, PACKED] if number % 2 else [PACKED, PADDED]
        for kind in kinds:
            batch = batches[kind][number]
            seconds = timed(model, batch)
            if number:  # the first round warms up
                rates[kind].append(int(batch["num_tokens"]) / seconds)
                print(f"round {number} {kind}: {rates[kind][-1]:,.0f} tokens/s of {shape(batch)}", flush=True)
    for kind, values in rates.items():
        print(f"{kind:<8} {statistics.median(values):7,.0f} tokens/s  ({spread(values)})")
    ratios = [packed / padded for packed, padded in zip(rates[PACKED], rates[PADDED], strict=True)]
    print(f"packed / padded {statistics.median(ratios):.3f}  ({spread(ratios)})")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a file of instruction rows")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=4, help="rows of a padded micro batch")
    parser.add_argument("--rounds", type=int, default=4)
    return parser.parse_args()


def epoch(options: argparse.Namespace, micro_batch_size: int, *, packing: bool) -> list[Batch]:
    """The micro batches of one epoch."""
    module = InstructionDataModule(
        DataConfig(source=options.data, max_length=options.max_length, packing=packing),
        load_tokenizer(options.model),
        batch_size=12 * micro_batch_size,
        micro_batch_size=micro_batch_size,
        eval_batch_size=micro_batch_size,
        seed=0,
    )
    return list(module.train_dataloader())


def report_padding(kind: str, batches: list[Batch]) -> list[Batch]:
    """Print the share of an epoch's places that hold no token."""
    tokens = sum(int(batch["num_tokens"]) for batch in batches)
    places = sum(batch["input_ids"].numel() for batch in batches)
    print(f"{kind:<8} {len(batches)} micro batches, {tokens:,} tokens, {1 - tokens / places:.1%} padding")
    return batches


def sample(batches: list[Batch], count: int) -> list[Batch]:
    """Micro batches from all over an epoch."""
    return batches[:: max(1, len(batches) // count)][:count]


def timed(model: PreTrainedModel, batch: Batch) -> float:
    started = time.perf_counter()
    summed_response_loss(model, batch, ScoredTokens.of(batch["labels"])).backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - started
    model.zero_grad()
    return seconds


def shape(batch: Batch) -> str:
    rows: Any = batch["input_ids"].shape
    return f"{rows[0]} x {rows[1]}"


def spread(values: list[float]) -> str:
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return f"quartiles {quarters[0]:,.3g} to {quarters[2]:,.3g}, n={len(values)}"


if __name__ == "__main__":
    main()
