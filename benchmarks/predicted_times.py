"""Predicted times of an 8B model on a card, by the plans' own costs, beside the paper's and those measured on one.

    python benchmarks/predicted_times.py --card h100 --card a100-80g --card l4

Prints Markdown. What is predicted, and how, stands in `uniattn_pl/plan/predicted_times.py`; nothing is run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uniattn_pl.architectures import CLA, LLMDrop, UniAttn
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.loading.pretrained import load_shape
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.card_rates import CardRates, find_card
from uniattn_pl.plan.predicted_times import (
    EAGER_MAPS,
    FUSED,
    PEAKS,
    REACHED,
    Timed,
    decode_seconds,
    held_bytes,
    prefill_seconds,
)

MODEL, RANK = "meta-llama/Llama-3.1-8B", 256
LENGTHS, BATCH_SIZES = (8192, 32768), (1, 8, 32)
DROPPED = (18, 21, 19, 20, 26, 22, 29, 28, 27, 25, 23, 24)  # paper Table 6, counted from 0
PAPER_LENGTH, PAPER_TTFT_S = 8192, {"stock": 2.26, "uniattn": 1.48, "cla": 2.23, "llmdrop": 1.47}  # Table 1, an H800
NOTHING = "-"
MEASURED = ("2026-11-26_h100.json", "2026-11-26_h100_chunks.json")


def plans_of(shape: ModelShape) -> dict[str, LayerPlan]:
    """The architectures on the paper's layers: 4 Superblocks of 4 at the top; 12 layers dropped."""
    uniattn = UniAttn().compile(shape)
    return {
        "stock": LayerPlan.unmodified(shape.num_layers),
        "uniattn": uniattn,
        "uniattn without W_c": UniAttn(compensation=False).compile(shape),
        f"uniattn, W_c of rank {RANK}": uniattn.limit_rank(RANK),
        "cla": CLA().compile(shape),
        "llmdrop": LLMDrop(layers=list(DROPPED)).compile(shape),
    }


def measured_rows(card: CardRates) -> list[dict[str, Any]]:
    """What was measured on this card: rows of benchmarks/gpu."""
    files = [json.loads((Path(__file__).parent / "gpu" / name).read_text()) for name in MEASURED]
    return [row for file in files if card.device in file.get("card", file.get("device")) for row in file["rows"]]


def prompt_rows(shape: ModelShape, card: CardRates, measured: list[dict[str, Any]]) -> Iterable[list[str]]:
    """A row per model and length, batch 1."""
    for length in LENGTHS:
        eager_stock = 0.0
        for name, plan in plans_of(shape).items():
            found = {kind: _measured(measured, "ttft", label, tokens=length) for kind, label in _labels(name).items()}
            least, fused, eager = (
                Timed(1, length),
                Timed(1, length, FUSED, REACHED),
                Timed(1, length, EAGER_MAPS, REACHED),
            )
            times = [1000 * prefill_seconds(plan, shape, card, case) for case in (least, fused, eager)]
            eager_stock = eager_stock or times[2]
            room = held_bytes(plan, shape, eager, prompt=True) <= card.memory_gib * 2**30
            paper = PAPER_TTFT_S.get(name) if length == PAPER_LENGTH else None
            yield [
                name,
                f"{length:,}",
                f"{times[0]:,.0f}",
                f"{times[1]:,.0f}",
                _milliseconds(found["fused"], "seconds", 1000),
                f"{times[2]:,.0f}" if room else "no room",
                _milliseconds(found["eager"], "seconds", 1000),
                f"{times[2] / eager_stock:.3f}",
                NOTHING if paper is None else f"{1000 * paper:,.0f}, {paper / PAPER_TTFT_S['stock']:.3f}",
            ]


def step_rows(shape: ModelShape, card: CardRates, measured: list[dict[str, Any]]) -> Iterable[list[str]]:
    """A row per model and length, all batch sizes."""
    for length in LENGTHS:
        for name, plan in plans_of(shape).items():
            cells = [name, f"{length:,}"]
            for batch in BATCH_SIZES:
                least, fused = Timed(batch, length), Timed(batch, length, FUSED, REACHED)
                times = [1000 * decode_seconds(plan, shape, card, case) for case in (least, fused)]
                room = held_bytes(plan, shape, fused, prompt=False) <= card.memory_gib * 2**30
                found = _measured(measured, "tpot", name, batch=batch, context=length, cudnn=False)
                busy = _milliseconds(found, "gpu_ms", 1)
                cells.append(f"{times[0]:.1f}, {times[1]:.1f}, {busy}" if room else "no room")
            yield cells


def _labels(name: str) -> dict[str, str]:
    return {"fused": name, "eager": f"{name} eager"}


def _measured(rows: list[dict[str, Any]], what: str, model: str, **facts: Any) -> dict[str, Any] | None:
    wanted = {"what": what, "model": model, **facts}
    return next((row for row in rows if wanted.items() <= row.items()), None)


def _milliseconds(row: dict[str, Any] | None, key: str, scale: float) -> str:
    return NOTHING if row is None else f"{scale * row[key]:,.0f}" if scale > 1 else f"{row[key]:.1f}"


def _print_markdown(columns: list[str], rows: Iterable[list[str]]) -> None:
    for cells in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(cells)} |")
    print()


def main() -> int:
    """Print two tables for each card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", action="append", default=[], help="a name of `plan --card`; default: h100")
    try:
        cards = [find_card(name) for name in parser.parse_args().card or ["h100"]]
    except UserError as error:
        parser.error(str(error))
    shape = load_shape(MODEL)
    for name, card in cards:
        measured = measured_rows(card)
        print(f"{name}, at {card.flops_per_s / 1e12:.0f} TFLOP/s and {card.bytes_per_s / 1e12:.2f} TB/s:\n")
        columns = ["TTFT, ms, batch 1", "tokens", "at least", "fused", "measured, sdpa", "eager", "measured, eager"]
        _print_markdown([*columns, "eager / stock", "paper, / stock"], prompt_rows(shape, card, measured))
        batches = [f"batch {batch}: at least, fused, measured" for batch in BATCH_SIZES]
        _print_markdown(["one token, ms", "cache, tokens", *batches], step_rows(shape, card, measured))
    print(f"({PEAKS.products:.0%} of both rates at least; fused and eager: {REACHED.products:.0%} of FLOP/s, ", end="")
    print(f"{REACHED.memory:.0%} of bytes/s.)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
