"""Names of metrics: one for each quantity, and what runs of former versions call it."""

from __future__ import annotations

from collections.abc import Iterator

CACHE_BYTES = "cost/kv_cache_bytes"  # of a fit at its own length; of a benchmark at each length of the prompt
FORMER_CACHE_BYTES = "cost/kv_bytes"  # of benchmarks
FINAL_LOSS = "final/response_loss"
HELD_OUT = "val/"  # the fit's held-out curves: its milestones and what is measured between them, by steps
RETAIN_RATE = "cost/kv_retain_rate"
_FORMER = (("final/", "stage2/"), ("final/", "stage1/"), ("final/", "initial/"), (CACHE_BYTES, FORMER_CACHE_BYTES))
_OF_MODEL = ("response_loss", "perplexity", "answer_accuracy", "dpo_loss", "rewards/")  # not what a stage's steps have


def spellings(metric: str) -> Iterator[str]:
    """The names under which runs of this and of former versions have a metric, its own first."""
    yield metric
    for new, former in _FORMER:
        for one, other in ((new, former), (former, new)):
            rest = metric.removeprefix(one)
            if rest != metric and (not one.endswith("/") or rest.startswith(_OF_MODEL)):
                yield other + rest
