"""`uniattn_pl.calibrate`: one call on texts or rows is the streaming pass on batches made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import uniattn_pl
from uniattn_pl.calibration.streaming import calibrate as calibrate_on_batches
from uniattn_pl.data import Row, embedded_rows, format_prompt
from uniattn_pl.data.prompt_ids import prompt_ids, text_ids
from uniattn_pl.errors import UserError

TINY = "tiny-llama"
ROWS = embedded_rows(10)
AS_DICTIONARIES = [{"instruction": row.instruction, "input": row.input, "output": row.output} for row in ROWS]
TEXTS = [f"{row.input} {row.output}" for row in ROWS]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return uniattn_pl.load_tokenizer(TINY)


def converted(**options: Any) -> PreTrainedModel:
    model = uniattn_pl.load_model(TINY, dtype="float32")
    return uniattn_pl.apply_architecture(model, "uniattn", superblock_size=4, num_superblocks=1, **options)


def same_weights(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_rows_are_fitted_as_batches_made_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    original = uniattn_pl.load_model(TINY, dtype="float32")
    by_hand, model = converted(), converted()
    batches = []
    for row in ROWS:  # no padding: one row a batch
        ids = prompt_ids(tokenizer, format_prompt(row.instruction, row.input))
        (response,) = text_ids(tokenizer, [row.output])
        tokens = torch.tensor([[*ids, *response, tokenizer.eos_token_id]])
        batches.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    fitted = sorted(batches[:8], key=lambda batch: batch["input_ids"].shape[1], reverse=True)
    expected = calibrate_on_batches(original, by_hand, fitted, batches[8:], initialiser="least_squares")
    options = {"initialiser": "least_squares", "max_length": 2048, "batch_size": 1}
    report = uniattn_pl.calibrate(model, tokenizer, ROWS, **options)
    assert report.tokens == expected.tokens == sum(batch["input_ids"].numel() for batch in batches[:8])
    assert report.error_after == pytest.approx(expected.error_after, rel=1e-5)
    assert report.error_after < report.error_before
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict(), rtol=1e-4, atol=1e-5)
    assert str(report).splitlines()[0].startswith("  layer    before     after")
    # The same rows as a file has them, held out by hand, and the original at hand.
    again = converted()
    other = uniattn_pl.calibrate(
        again, tokenizer, AS_DICTIONARIES[:8], held_out=AS_DICTIONARIES[8:], original=original, **options
    )
    assert other == report
    assert same_weights(again, model)


def test_texts_of_any_length_are_learned_whole_and_calibrating_again_is_calibrating_once(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    model, calls = converted(), list[tuple[int, int, str]]()
    options = {"initialiser": "least_squares", "max_length": 48}
    first = uniattn_pl.calibrate(model, tokenizer, TEXTS, progress=lambda *call: calls.append(call), **options)
    tokens = sum(len(ids) for ids in text_ids(tokenizer, TEXTS[:8]))
    assert first.tokens >= tokens, "cut into sequences, none of it left out"
    assert calls[-1][0] == calls[-1][1]
    once = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert uniattn_pl.calibrate(model, tokenizer, TEXTS, **options) == first
    assert all(torch.equal(weight, once[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given | {"tokenizer": given["model"]}, "tokenizer: expected the model's tokenizer"),
        (lambda given: given | {"model": uniattn_pl.load_model(TINY)}, "no layer plan; convert it first"),
        (lambda given: given | {"original": given["model"]}, "the original is the converted model itself"),
        (lambda given: given | {"data": TEXTS[0]}, "data: expected a list of texts or of rows, got one str"),
        (lambda given: given | {"data": TEXTS[:1]}, "at least 2 texts or rows"),
        (lambda given: given | {"data": [*TEXTS, {"instrution": "x", "output": "y"}]}, r"data\[10\]: cannot tell"),
        (lambda given: given | {"data": TEXTS, "held_out": [3]}, r"held_out\[0\]: the row is a number"),
        (lambda given: given | {"initialiser": "least_square"}, "Did you mean 'least_squares'"),
        (lambda given: given | {"max_length": 0, "batch_size": 1.5}, "max_length: must be.*\nbatch_size: must be"),
        (lambda given: given | {"template": "chat"}, "the model has no chat template"),
        (lambda given: given | {"data": ROWS, "max_length": 4}, "of 8 rows none has anything to learn"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    given = change({"model": converted(), "tokenizer": tokenizer, "data": TEXTS})
    with pytest.raises(UserError, match=message):
        uniattn_pl.calibrate(given.pop("model"), given.pop("tokenizer"), given.pop("data"), **given)


def test_an_original_that_is_not_to_be_found_or_another_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    trained = converted()
    with torch.no_grad():
        trained.model.layers[1].mlp.up_proj.weight.add_(0.1)
    with pytest.raises(UserError, match=r"^1 weights beside.*model\.layers\.1\.mlp\.up_proj\.weight: it was trained"):
        uniattn_pl.calibrate(trained, tokenizer, TEXTS)
    model = converted()
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is converted, too; give original=MODEL"):
        uniattn_pl.calibrate(type(model).from_pretrained(tmp_path), tokenizer, TEXTS)
    model.name_or_path = model.config._name_or_path = ""
    with pytest.raises(UserError, match="made without a source to load its original from; give original=MODEL"):
        uniattn_pl.calibrate(model, tokenizer, TEXTS)


def test_rows_that_a_filter_leaves_out_are_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    empty = {"messages": [{"role": "user", "content": "no answer"}]}
    reports = [
        uniattn_pl.calibrate(converted(), tokenizer, data, max_length=64)
        for data in (TEXTS[:3], [TEXTS[0], empty, TEXTS[1], Row("", "", TEXTS[2])])
    ]
    assert reports[0] == reports[1]
