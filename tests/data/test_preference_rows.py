"""Pairs of a chosen and a rejected response: read in every form, as the tokens of TRL, and refused with their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import Row, read_source
from uniattn_pl.data.embedded_pairs import PAIRS
from uniattn_pl.data.preference_data import PreferenceDataModule
from uniattn_pl.data.row_contents import contents_of
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.loading.pretrained import load_tokenizer

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures/preferences_trl/recorded.json").read_text())
TEXTS = {"prompt": "Which number?", "chosen": "Five.", "rejected": "None."}
USER = {"role": "user", "content": "Which number?"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def written(folder: Path, rows: list[dict[str, Any]], name: str = "pairs.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def module(source: str, max_length: int = 128, **options: Any) -> PreferenceDataModule:
    config = DataConfig(source=source, max_length=max_length, token_cache=False, **options)
    sizes = {"batch_size": 3, "micro_batch_size": 3, "eval_batch_size": 3, "seed": 0}
    return PreferenceDataModule(config, load_tokenizer("tiny-llama"), **sizes)


@pytest.mark.parametrize("rows", ["rows", "implicit_rows"])
def test_chats_are_the_tokens_that_trl_makes_of_them(rows: str, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(RECORDED["template"])
    held_out = written(tmp_path, RECORDED[rows], "held_out.jsonl")
    data = module(written(tmp_path, RECORDED[rows]), template=str(template), validation_source=held_out)
    data.setup()
    found = [data.train_pairs[index] for index in range(3)]
    ids, mask, learned = (
        torch.tensor(RECORDED["batch"][name]) for name in ("input_ids", "attention_mask", "completion_mask")
    )
    expected = set()
    for row in range(3):
        sequences = [ids[row + side][mask[row + side] == 1].tolist() for side in (0, 3)]
        spans = [learned[row + side].nonzero().flatten().tolist() for side in (0, 3)]
        expected.add(str([sequences, spans]))
    ours = set()
    for pair in found:
        sequences = [one.tokens.tolist() for one in (pair.chosen, pair.rejected)]
        spans = [[n for a, b in one.spans.tolist() for n in range(a, b)] for one in (pair.chosen, pair.rejected)]
        ours.add(str([sequences, spans]))
    assert ours == expected


@pytest.mark.parametrize(
    "row",
    [
        TEXTS,
        {"prompt": [USER], "chosen": [said("Five.")], "rejected": [said("None.")]},
        {"prompt": "Which number?", "chosen": [said("Five.")], "rejected": [said("None.")]},
        {"chosen": [USER, said("Five.")], "rejected": [USER, said("None.")]},
        {"prompt": "Which number?", "chosen": [USER, said("Five.")], "rejected": [USER, said("None.")]},
        {"messages": [USER, said("Five.")], "chosen": [USER, said("Five.")], "rejected": [USER, said("None.")]},
    ],
)
def test_every_form_is_the_same_pair(row: dict[str, Any], tmp_path: Path) -> None:
    source = read_source(written(tmp_path, [row]))
    assert source.format == "preference"
    assert source.rows == [Row("", "Which number?", "Five.", rejected=Row("", "Which number?", "None."))]


def test_a_pair_of_the_same_responses_is_left_out_and_counted(tmp_path: Path) -> None:
    source = read_source(written(tmp_path, [TEXTS, {**TEXTS, "rejected": "Five."}]))
    assert (len(source.rows), source.filtered) == (1, 1)


def test_the_rejected_response_counts_as_content_and_no_other_digest_has_changed() -> None:
    alone = Row("", "Which number?", "Five.")
    pair = Row("", "Which number?", "Five.", rejected=Row("", "Which number?", "None."))
    other = Row("", "Which number?", "Five.", rejected=Row("", "Which number?", "Six."))
    digests = [contents_of([row], "rows").digest for row in (alone, pair, other)]
    assert len(set(digests)) == 3
    assert digests[0].startswith("dc50cd04ae1a4553")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"prompt": "Which?", "chosen": "Five."},
            "'rejected' is missing; a row of format 'preference' needs prompt, chosen",
        ),
        ({**TEXTS, "chosen": 5}, "'chosen' is a number; it must be a string, or a list of turns"),
        ({**TEXTS, "chosen": " "}, "'chosen' is empty; it must have text"),
        ({"chosen": "Five.", "rejected": "None."}, "'prompt' is missing; only 'chosen' and 'rejected' that are lists"),
        ({"promt": "Which?", "chosen": "A", "rejected": "B"}, "is 'promt' meant to be 'prompt'?"),
        ({"chosen": [said("A")], "rejected": [said("B")]}, "begin with different turns, and there is no 'prompt'"),
        (
            {"chosen": [USER, said("A")], "rejected": [USER]},
            "'rejected' has no turn of the assistant behind the prompt",
        ),
        ({"chosen": [USER, said("A")], "rejected": [USER, USER]}, "'rejected' has no turn of the assistant behind"),
        (
            {"prompt": [{"role": "who", "content": "A"}], "chosen": "A", "rejected": "B"},
            "'prompt[0]' has role 'who'; allowed",
        ),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line_with_what_is_allowed(
    row: dict[str, Any], told: str, tmp_path: Path
) -> None:
    source = written(tmp_path, [TEXTS, row])
    with pytest.raises(UserError) as refused:
        read_source(source, format="preference")
    (problem,) = refused.value.problems
    assert problem.startswith(f"{source}, line 2: ")
    assert told in problem
    assert len(read_source(source, format="preference", on_bad_row="skip").rows) == 1


def test_rows_of_one_response_are_refused_with_their_source(tmp_path: Path) -> None:
    source = written(tmp_path, [{"instruction": f"Count to {n}.", "output": "1 2 3"} for n in range(4)])
    with pytest.raises(UserError, match="have one response"):
        module(source, 512, validation_size=1).setup()


def test_a_pair_is_dropped_with_its_prompt_and_a_long_response_is_cut(tmp_path: Path) -> None:
    long, cut = {**TEXTS, "prompt": "Which number? " * 30}, {**TEXTS, "rejected": "None at all. " * 30}
    held_out = written(tmp_path, [TEXTS], "held_out.jsonl")
    data = module(written(tmp_path, [TEXTS, long, cut]), 400, validation_source=held_out)
    data.setup()
    lengths = [len(data.train_pairs[index].rejected.tokens) for index in range(len(data.train_pairs))]
    assert len(lengths) == 2
    assert max(lengths) == 400
    assert data.pair_counts == "2 pairs train, 1 validation; 1 rejected responses cut at 400 tokens"


def test_the_embedded_pairs_differ_in_the_answer_alone() -> None:
    rows = read_source("embedded_pairs").rows
    assert len(rows) == PAIRS
    for row in rows[:100]:
        assert row.rejected is not None
        assert row.rejected.input == row.input
        wrong = next(choice for choice in row.choices if row.rejected.output.startswith(choice))
        assert wrong != row.answer
        assert row.rejected.output.removeprefix(wrong) == row.output.removeprefix(str(row.answer))
