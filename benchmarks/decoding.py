"""Time per decoded token over a long context, at several batch sizes: one step of each model after the other.

    python benchmarks/decoding.py --length 8192 --batch-sizes 1 4 --steps 40

One process, the models of `bench` on the same weights. A prompt is prefilled once per model and its cache repeated
over the batch, so that large batches need no large prefill. Steps of the models alternate in rotating order; ratios
are taken step by step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()

    import torch

    from uniattn_pl.architectures import UniAttn
    from uniattn_pl.families.model_shape import shape_of
    from uniattn_pl.inference.benchmark import BASELINE, STOCK, quartiles, subjects_of
    from uniattn_pl.modeling.loading.pretrained import load_model
    from uniattn_pl.tracking.environment import describe_machine

    print(f"on {describe_machine()}; {arguments.model}, {arguments.dtype}, {arguments.length} tokens of context")
    model = load_model(arguments.model, dtype=arguments.dtype)
    plan = UniAttn().compile(shape_of(model.config))
    ids = torch.randint(0, model.config.vocab_size, (1, arguments.length), generator=torch.Generator().manual_seed(0))
    for batch_size in arguments.batch_sizes:
        subjects = subjects_of(model, {"uniattn": plan}, "sdpa", chunk_size=None)
        caches: list[Any] = []
        for subject in subjects:
            caches.append(subject.prefill(ids).past_key_values)
            caches[-1].batch_repeat_interleave(batch_size)
        token = torch.full((batch_size, 1), 5)
        seconds: list[list[float]] = [[] for _ in subjects]
        for step in range(arguments.steps + 2):  # the first two make room in the caches
            for offset in range(len(subjects)):
                index = (step + offset) % len(subjects)
                start = time.perf_counter()
                with torch.no_grad():
                    subjects[index].model(
                        input_ids=token, past_key_values=caches[index], use_cache=True, logits_to_keep=1
                    ).logits.argmax(-1)
                if step >= 2:
                    seconds[index].append(time.perf_counter() - start)
        labels = [subject.label for subject in subjects]
        print(f"\nbatch {batch_size}: milliseconds per step, median (quartiles) of {arguments.steps}")
        for label, times in zip(labels, seconds, strict=True):
            ratios = [
                _spread([own / other for own, other in zip(times, seconds[labels.index(name)], strict=True)])
                for name in (STOCK, BASELINE)
            ]
            low, high = quartiles(times)
            print(
                f"  {label:<28} {1e3 * statistics.median(times):6.1f} ({1e3 * low:.1f}-{1e3 * high:.1f})"
                f"   / stock {ratios[0]}   / baseline {ratios[1]}"
            )
    return 0


def _spread(values: list[float]) -> str:
    from uniattn_pl.inference.benchmark import quartiles

    low, high = quartiles(values)
    return f"{statistics.median(values):.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
