"""`data`: rows, and how they become token sequences."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.config.sections.limits import LARGEST_SEED, LONGEST, MOST_PROCESSES
from uniattn_pl.options import option

EMBEDDED = "embedded"
DATA_SUFFIXES = (".json", ".jsonl", ".parquet")


@dataclass
class DataConfig:
    """Where instruction / input / output rows come from and how they become token sequences."""

    source: str = option(EMBEDDED, "'embedded', a .json / .jsonl / .parquet file, or a hub data set name", path=True)
    split: str = option("train", "split of a hub data set")
    format: str = option(
        "auto", "row format; auto looks at the keys", allowed=("auto", "alpaca", "pmc", "tulu3", "infinity_instruct")
    )
    validation_source: str | None = option(None, "a source for validation; default: split off the first", path=True)
    validation_size: int = option(200, "rows held out for validation", minimum=1)
    num_samples: int | None = option(None, "rows used, shuffled (train + validation); default: all", minimum=1)
    shuffle_seed: int = option(0, "seed of the train / validation split", minimum=0, maximum=LARGEST_SEED)
    max_length: int = option(
        512, "tokens per sequence, prompt and response; longer ones are cut and counted", minimum=8, maximum=LONGEST
    )
    on_bad_row: str = option("error", "error: stop at the first bad row; skip: count them", allowed=("error", "skip"))
    num_workers: int = option(0, "processes that make batches ahead", minimum=0, maximum=MOST_PROCESSES)
    packing: bool = option(False, "several rows in one training sequence of max_length; none sees another")
    token_cache: bool = option(True, "keep tokens on disk, so that the same rows are not tokenised again")
