"""A byte-level tokenizer built offline: one token a byte, so that lengths and first tokens are plain to see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def byte_tokenizer(*, bos: bool = False, eos: bool = False, pad: bool = True) -> PreTrainedTokenizerFast:
    """One that puts BOS before every text, or EOS behind it, or neither."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<eos>", "<bos>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> " * bos + "$A" + " <eos>" * eos,
            special_tokens=[(name, vocabulary[name]) for name in ("<bos>", "<eos>")],
        )
    specials = {"eos_token": "<eos>", "bos_token": "<bos>"} | ({"pad_token": "<pad>"} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return byte_tokenizer


@pytest.fixture
def shared_train() -> Path:
    folder = SHARED_DATA / "train"
    if not folder.is_dir():
        pytest.skip(f"the real data samples are not at {folder}")
    return folder
