"""`data`: rows, and how they become token sequences."""

from __future__ import annotations

from dataclasses import dataclass, field

from uniattn_pl.config.sections.limits import LARGEST_BATCH, LARGEST_SEED, LONGEST, MOST_PROCESSES
from uniattn_pl.options import option

EMBEDDED, EMBEDDED_CHATS, EMBEDDED_PAIRS = MADE = ("embedded", "embedded_chats", "embedded_pairs")
SELF, BOS = "self", "bos"
TEXT_SUFFIXES = (".txt", ".raw")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
JSON_SUFFIXES = (".json", ".jsonl")
PACKED_SUFFIXES = tuple(f"{kind}{packed}" for packed in COMPRESSIONS for kind in JSON_SUFFIXES)
DATA_SUFFIXES = (*JSON_SUFFIXES, ".parquet", *TEXT_SUFFIXES, *PACKED_SUFFIXES)
DATA_KINDS = ".json, .jsonl, .parquet, .txt, .raw, and .json or .jsonl packed as .gz or .zst"  # the same in words
PREFERENCE = "preference"
ROW_FORMATS = ("auto", "alpaca", "pmc", "tulu3", "infinity_instruct", "chat", "completion", PREFERENCE, "text")
CHAT_ROLES = ("user", "assistant", "system", "tool")
PAPER, CHAT = "paper", "chat"  # prompts that rows are put into; anything else is a file with a Jinja template


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
class SourceConfig:
    """One source of a mixture: an entry of `data.sources`."""

    source: str = option("", "as data.source", path=True)
    format: str = option("auto", "its row format; auto looks at the keys", allowed=ROW_FORMATS)
    text_column: str | None = option(None, "the key of its plain text")
    split: str = option("train", "split of a hub data set")
    weight: float | None = option(None, "its share of the sequences of an epoch, beside the others' weights")
    num_samples: int | None = option(None, "training rows taken of it, shuffled; default: all", minimum=1)


@dataclass
class DataConfig:
    """Where instruction / input / output rows come from and how they become token sequences."""

    source: str = option(
        EMBEDDED, "'embedded', a file of rows or plain text, a hub data set, or 'self': text of the model", path=True
    )
    further_sources: list[str] | None = option(None, "further sources of training rows, besides `source`", path=True)
    sources: list[SourceConfig] | None = option(
        None, "a mixture, instead of `source`: a list of {source, format, text_column, split, weight, num_samples}"
    )
    self_text: SelfTextConfig = field(default_factory=SelfTextConfig)
    more_files: list[str] | None = option(
        None, "files read as one with `source`; in short `source: [a.jsonl, b.jsonl]`", path=True
    )
    split: str = option("train", "split of a hub data set")
    format: str = option("auto", "row format of `source`; auto looks at the keys", allowed=ROW_FORMATS)
    text_column: str | None = option(None, "key of plain text; default: `text`, or the only one that holds a string")
    roles: list[str] | None = option(
        None, f"unusual names of who speaks, as in [doctor=assistant, patient=user]; {', '.join(CHAT_ROLES)}"
    )
    template: str = option(
        PAPER, "what rows are put into: paper (its prompt), chat (the model's chat template) or a Jinja file", path=True
    )
    loss_turns: str = option("all", "turns of the assistant that a chat is learned from", allowed=("all", "last"))
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
    pack_documents: bool = option(False, "plain texts one after another, cut into sequences of exactly max_length")
    remove_overlap: bool = option(False, "leave out training rows whose prompt, or plain text, is held out, too")
    streaming: bool = option(False, "read rows as they are trained on: sets larger than memory or disk")
    shuffle_buffer: int = option(10_000, "streaming: rows that are held and shuffled together; 1: none", minimum=1)
    token_cache: bool = option(True, "keep tokens on disk, so that the same rows are not tokenised again")

    @property
    def role_of(self) -> dict[str, str]:
        """What `roles` says: name -> one of `CHAT_ROLES`."""
        return {name: role for name, _, role in (entry.rpartition("=") for entry in self.roles or [])}

    @property
    def whole_chats(self) -> bool:
        """Whether conversations are taken whole, for a chat template."""
        return self.template != PAPER

    @property
    def training_sources(self) -> list[str]:
        """All sources of training rows."""
        if self.sources is not None:
            return [entry.source for entry in self.sources]
        return [self.source, *(self.further_sources or [])]

    @property
    def name(self) -> str:
        """What is trained on, in a line."""
        return self.source if self.sources is None else " + ".join(self.training_sources)

    @property
    def split_source(self) -> str | None:
        """The source whose rows are split; of sampled text that of its prompts. None: it begins with BOS.

        Of a mixture every source but sampled text is split, and this is the first of them.
        """
        if self.sources is not None:
            return next((entry.source for entry in self.sources if entry.source != SELF), None)
        if self.source != SELF:
            return self.source
        return None if self.self_text.prompts == BOS else self.self_text.prompts
