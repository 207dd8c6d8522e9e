"""A tiny converted model with a chat template, in a folder as a fit leaves it."""

from __future__ import annotations

from pathlib import Path

from uniattn_pl.modeling.conversion.convert import apply_architecture
from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer


def save_tiny_chat(folder: Path, template: str) -> Path:
    """Write it into `folder`, which is returned."""
    model = load_model("tiny-llama", dtype="float32")
    apply_architecture(model, "uniattn", superblock_size=4, num_superblocks=1)
    model.save_pretrained(folder)
    tokenizer = load_tokenizer("tiny-llama")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder
