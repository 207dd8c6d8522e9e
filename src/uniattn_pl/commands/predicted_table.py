"""The times of `plan --card`: of a plan and of the unmodified model, from `plan/predicted_times.py`."""

from __future__ import annotations

from collections.abc import Sequence

from uniattn_pl.display.text_table import print_table, print_text
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.card_rates import GIB, CardRates
from uniattn_pl.plan.predicted_times import (
    ATTENTIONS,
    EAGER_MAPS,
    LEAST,
    PEAKS,
    REACHED,
    Timed,
    decode_seconds,
    held_bytes,
    prefill_seconds,
)

COLUMNS = ("length", "attention", "TTFT ms", "unmodified", "ratio", "TPOT ms", "unmodified", "ratio")


def print_predicted(
    plan: LayerPlan, shape: ModelShape, lengths: Sequence[int], batch_size: int, name: str, card: CardRates
) -> None:
    """Print milliseconds to the first token and per further one, by length and way of computing attention."""
    rows = []
    for length in lengths:
        for attention, explanation in ATTENTIONS.items():
            case = Timed(batch_size, length, attention, PEAKS if attention == LEAST else REACHED)
            cells = [str(length), explanation]
            for seconds in (prefill_seconds, decode_seconds):
                models = (plan, LayerPlan.stock(shape))
                of_prompt = attention == EAGER_MAPS and seconds is prefill_seconds
                fits = [held_bytes(m, shape, case, prompt=of_prompt) <= card.memory_gib * GIB for m in models]
                times = [seconds(model, shape, card, case) for model in models]
                cells += [_ms(time) if fit else "no room" for time, fit in zip(times, fits, strict=True)]
                cells.append(f"{times[0] / times[1]:.3f}")
            rows.append(tuple(cells))
    print()
    print_table(f"Predicted on {name}, batch size {batch_size}, bfloat16", COLUMNS, rows)
    peaks = f"{card.flops_per_s / 1e12:.0f} TFLOP/s and {card.bytes_per_s / 1e12:.2f} TB/s"
    reached = f"{REACHED.products:.0%} and {REACHED.memory:.0%}"
    print_text(
        f"at least: at {peaks}; the others: at {reached} of these, as on an H100; what Python takes is left out."
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}"
