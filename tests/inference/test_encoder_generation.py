"""What an encoder-decoder model writes of a prompt is what transformers' own generate() writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny_seq2seq import FAMILIES, stock_seq2seq

from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import byte_tokenizer, named_model
from uniattn_pl.families.encoder_decoder import tell_decoder_start
from uniattn_pl.inference.continuation import continuation, encoded_prompt
from uniattn_pl.inference.generation import generate
from uniattn_pl.inference.token_choice import Sampling, TokenChooser
from uniattn_pl.modeling.loading.pretrained import load_folder, load_folder_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_it_continues_as_generate_does(family: str) -> None:
    model, source = stock_seq2seq(family), [5, 9, 30, 31, 7, 2]
    tokenizer = byte_tokenizer()
    tell_decoder_start(tokenizer, model.config)
    begins = [2, 1] if family == "bart" else [int(tokenizer.uniattn_decoder_start)]
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1}
    expected = model.generate(torch.tensor([source]), decoder_input_ids=torch.tensor([begins]), **options)[
        0, len(begins) :
    ].tolist()
    chooser = TokenChooser(Sampling(), model.device)
    prompt = encoded_prompt(model, source, begins)
    found = [score.id for score in continuation(model, prompt, chooser, ends=frozenset(), max_new_tokens=8)]
    assert found == expected
    assert len(set(found)) > 1, "a model that says something"


def test_a_folder_is_generated_from(tmp_path: Path) -> None:
    folder = named_model("tiny-t5")
    model, tokenizer = load_folder(folder), load_folder_tokenizer(folder)
    ids = tokenizer("Why?", return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)[0, 1:]
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert generate(folder, ["Why?"], max_new_tokens=6) == [text]
    for options in ({"h2o_retain_rate": 0.5}, {"compiled": True}):
        with pytest.raises(UserError, match="made for decoders alone"):
            generate(folder, ["Why?"], **options)  # type: ignore[arg-type]
