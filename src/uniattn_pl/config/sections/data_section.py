"""`data`: rows, and how they become token sequences."""

from __future__ import annotations

from dataclasses import dataclass, field

from uniattn_pl.config.sections.limits import LARGEST_BATCH, LARGEST_SEED, LONGEST, MOST_PROCESSES
from uniattn_pl.options import option

EMBEDDED = "embedded"
SELF, BOS = "self", "bos"
TEXT_SUFFIXES = (".txt", ".raw")
DATA_SUFFIXES = (".json", ".jsonl", ".parquet", *TEXT_SUFFIXES)
ROW_FORMATS = ("auto", "alpaca", "pmc", "tulu3", "infinity_instruct", "text")


@dataclass
class SelfTextConfig:
    """Text that the original model writes, as rows: for `data.source: self`, in short `data.source: {self: 1000}`."""

    rows: int = option(1000, "texts sampled", minimum=1)
    prompts: str = option(BOS, "bos: texts from their first token; or a source whose prompts are continued", path=True)
    tokens: int = option(256, "tokens of a text at most, without its prompt", minimum=1, maximum=LONGEST)
    temperature: float = option(1.0, "1: the model's own distribution; lower: likelier tokens", minimum=0.0)
    seed: int = option(0, "of what is sampled, whatever the seed of the experiment", minimum=0, maximum=LARGEST_SEED)
    batch_size: int = option(32, "texts sampled together", minimum=1, maximum=LARGEST_BATCH)


@dataclass
class DataConfig:
    """Where instruction / input / output rows come from and how they become token sequences."""

    source: str = option(
        EMBEDDED, "'embedded', a file of rows or plain text, a hub data set, or 'self': text of the model", path=True
    )
    further_sources: list[str] | None = option(None, "further sources of training rows, besides `source`", path=True)
    self_text: SelfTextConfig = field(default_factory=SelfTextConfig)
    split: str = option("train", "split of a hub data set")
    format: str = option("auto", "row format of `source`; auto looks at the keys", allowed=ROW_FORMATS)
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

    @property
    def sources(self) -> list[str]:
        """All sources of training rows."""
        return [self.source, *(self.further_sources or [])]

    @property
    def split_source(self) -> str | None:
        """The source whose rows are split; of sampled text that of its prompts. None: it begins with BOS."""
        if self.source != SELF:
            return self.source
        return None if self.self_text.prompts == BOS else self.self_text.prompts
