"""What figures call the keys, settings and models that the program knows by short names."""

from __future__ import annotations

WORDS = {
    "architecture.name": "architecture",
    "architecture.num_superblocks": "number of Superblocks",
    "architecture.superblock_size": "layers per Superblock",
    "num_superblocks": "Superblocks",
    "superblock_size": "layers per Superblock",
    "training.stage1.learning_rate": "learning rate of stage 1",
    "training.stage2.learning_rate": "learning rate of stage 2",
    "calibration.num_samples": "rows of the calibration",
    "data.num_samples": "rows of the data",
    "ttft_s": "time to first token",
    "tpot_s": "time per further token",
    "head_averaged": "averaged over heads",
    "concatenated": "all heads as one vector",
    "per_head": "head by head",
    "best_match": "each head with the one most like it",
    "without_sink": "head by head, without the first token",
    "top": "Superblocks at the top",
    "similarity": "most similar maps",
    "greedy": "one by one, by measured loss",
    "mip": "by an integer program",
    "swap": "by swaps",
    "stock": "stock kernels",
    "baseline": "unmodified",
    "uniattn": "UniAttn",
    "cla": "CLA",
    "yoco": "YOCO",
    "gqa": "GQA",
    "llmdrop": "LLMDrop",
    "shortgpt": "ShortGPT",
    "kvsharer": "KVSharer",
    "shared_attention": "Shared Attention",
    "share_kv": "shared KV",
    "stage1": "stage 1",
    "stage2": "stage 2",
    "drop": "dropped",
}


def words(name: str) -> str:
    """A short name, or settings `key=value,key=value`, in words; what a user has named stays as it is."""
    if name in WORDS:
        return WORDS[name]
    first, _, rest = name.partition(" ")
    if rest and first in WORDS:
        return f"{WORDS[first]} {rest}"
    if "=" in name and " " not in name:
        return ", ".join(_setting(part) for part in name.split(","))
    return name


def key_words(key: str) -> str:
    """A key of the config in words."""
    return WORDS.get(key, key.rpartition(".")[2].replace("_", " "))


def _setting(text: str) -> str:
    key, _, value = text.partition("=")
    last = key.rpartition(".")[2]
    return f"{WORDS.get(last, key_words(key))} {WORDS.get(value, value)}"
