"""`evaluation` and `bench`: what is measured of a model."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.config.sections.limits import LARGEST_BATCH, LARGEST_SEED, LONGEST
from uniattn_pl.families.attention_kernels import ATTENTION_BACKENDS
from uniattn_pl.options import option

EVERY_KERNEL = "installed"
SAMPLES = {"stratified": "rows of every answer, in the proportion in which they are there", "shuffled": "any rows"}
PROBES = {
    "held_out": "loss and perplexity on the validation rows of `data`",
    "divergence": "KL of the next token from `reference`, on the same rows",
    "positions": "loss by position on a long text",
    "retrieval": "finding a pass key in filler, and a value among keys, by length and depth",
}


@dataclass
class EvaluationConfig:
    """What a fit measures on held-out rows before, between and after the stages, and what `evaluate` measures."""

    num_samples: int = option(200, "validation sequences at most", minimum=1)
    texts: int = option(3, "held-out rows that a fit has its models answer, for its last table", minimum=0, maximum=100)
    batch_size: int = option(8, "sequences per forward", minimum=1, maximum=LARGEST_BATCH)
    tasks: list[str] = option([], "names of lm-evaluation-harness tasks")
    num_fewshot: int | None = option(None, "examples in each prompt; default: as the task says", minimum=0)
    data_dir: str | None = option(None, "folder of TASK/SPLIT.jsonl; default: each task's hub data set", path=True)
    limit: int | None = option(None, "rows per task; default: all", minimum=1)
    sample: str = option("stratified", "which rows `limit` leaves", allowed=tuple(SAMPLES))
    sample_seed: int = option(0, "seed of which rows, and what retrieval hides", minimum=0, maximum=LARGEST_SEED)
    probes: list[str] = option([], "measured besides tasks: " + ", ".join(PROBES))
    held_out_rows: int | None = option(None, "validation rows of `held_out`; default: num_samples", minimum=1)
    reference: str | None = option(
        None,
        "model that `divergence` is measured from: a run or model folder, or as model.source; default: that one",
        path=True,
    )
    text: str | None = option(None, "plain text file on which `positions` is measured", path=True)
    windows: int | None = option(None, "windows of the text at most; default: all", minimum=1)
    lengths: list[int] = option(
        [512, 2048, 8192], "tokens of retrieval's texts; the largest is positions' window", maximum=LONGEST
    )
    trials: int = option(5, "texts of retrieval at each length and depth", minimum=1)
    h2o: list[float] = option([], "measure again with each prompt's cache compressed by H2O to these parts (Table 3)")
    drop: list[int] = option(
        [], "measure again with the attention of so many reuse layers dropped, the least important ones (Figure 5)"
    )


@dataclass
class BenchConfig:
    """What `bench` measures, besides this experiment's architecture and its references."""

    lengths: list[int] = option([512, 4096, 8192], "tokens of the prompt", maximum=LONGEST)
    batch_sizes: list[int] = option([1], "sequences decoded together", maximum=LARGEST_BATCH)
    backends: list[str] = option(
        ["sdpa"], f"attention kernels: {', '.join(ATTENTION_BACKENDS)}; {EVERY_KERNEL}: every one that is here"
    )
    beside: list[str] = option([], "config files whose architectures are measured in the same process", path=True)
    new_tokens: int = option(
        17, "tokens generated per measurement, the first by the prefill", minimum=2, maximum=LONGEST
    )
    rounds: int = option(5, "measurements of each model at each setting, interleaved", minimum=1)
    chunk_size: int | None = option(None, "queries per chunk of the prefill; default: by memory", minimum=1)
    compile: bool = option(False, "decode by a compiled step over a static cache: a CUDA graph on a card")
    tune_kernels: bool = option(False, "first measure where tiles of maps win on this card, for reuse=auto")
