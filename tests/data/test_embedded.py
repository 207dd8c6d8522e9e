import hashlib
import json
from dataclasses import astuple

import pytest

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import embedded_rows, load_split
from uniattn_pl.data.embedded import EMBEDDED_ROWS
from uniattn_pl.data.embedded_facts import CAUTIONS, CONDITIONS, LAB_TESTS
from uniattn_pl.errors import UserError

GOLDEN = "d4f848e16ea31491e7fb87679c0e46c9ce5de2070b2a805f09717520283674ef"


@pytest.fixture(scope="module")
def rows():
    return embedded_rows()


def test_rows_are_the_same_on_every_machine(rows):
    text = json.dumps([astuple(row)[:5] for row in rows[:500]])  # all of a row that is no text cut in pieces
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN
    assert embedded_rows(100) == rows[:100]


def test_no_two_rows_share_an_input(rows):
    assert len({row.input for row in rows}) == len(rows) == EMBEDDED_ROWS


def test_the_output_begins_with_one_of_the_choices_and_the_choices_begin_differently(rows, tokenizer):
    for row in rows:
        assert row.answer in row.choices
        assert row.output.startswith(f"{row.answer}. ")
        # One token a byte: whatever the tokenizer, different first bytes are different first tokens.
        first_tokens = {tokenizer(choice, add_special_tokens=False)["input_ids"][0] for choice in row.choices}
        assert len(first_tokens) == len(row.choices)


def test_a_laboratory_answer_follows_from_the_numbers(rows):
    labs = [row for row in rows if row.choices == ("Yes", "No")]
    assert len(labs) == len(rows) / 5
    for row in labs:
        test = next(test for test in LAB_TESTS if f"{test.name} " in row.input)
        shown = row.output.split(f"{test.name} of ")[1].split()[0]
        assert f"{test.name} {shown} " in row.input or f"{test.name} of {shown} " in row.input
        assert (row.answer == "Yes") == (not test.low <= float(shown) <= test.high)


def test_a_drug_answer_follows_from_the_note(rows):
    cautions = {(caution.avoid, history): caution for caution in CAUTIONS for history in caution.histories}
    for row in rows:
        note = row.input.split("\nOptions:\n")[0]
        if len(row.choices) == 3:  # the one drug the note names
            assert [drug in note for drug in row.choices] == [drug == row.answer for drug in row.choices]
        elif len(row.choices) == 2 and row.answer not in ("Yes", "No"):
            quoted = row.output.split("The note mentions ")[1].split(": ")[0]
            assert quoted in note
            assert set(row.choices) == {row.answer, cautions[row.answer, quoted].prefer}


def test_a_diagnosis_answer_follows_from_the_note(rows):
    owners = {sign: condition for condition in CONDITIONS for sign in condition.signs}
    for row in (row for row in rows if len(row.choices) == 4):
        quoted = row.output.split("points to it is ")[1].removesuffix(".")
        assert quoted in row.input
        assert owners[quoted].name == row.answer
        others = [
            condition for condition in CONDITIONS if condition.name in row.choices and condition.name != row.answer
        ]
        assert all(condition.system != owners[quoted].system for condition in others)


def test_answers_are_balanced(rows):
    labs = [row.answer for row in rows if row.choices == ("Yes", "No")]
    assert 0.45 < labs.count("Yes") / len(labs) < 0.55
    diagnoses = [row.choices.index(row.answer) for row in rows if len(row.choices) == 4]
    assert all(0.2 < diagnoses.count(place) / len(diagnoses) < 0.3 for place in range(4))


def test_the_split_shares_no_input_and_validation_does_not_depend_on_num_samples():
    default = load_split(DataConfig(validation_size=500))
    large = load_split(DataConfig(validation_size=500, num_samples=4_500))
    assert (len(default.train), len(default.validation)) == (2_000, 500)
    assert (len(large.train), len(large.validation)) == (4_000, 500)
    assert default.validation == large.validation
    assert large.overlap == 0


def test_more_rows_than_there_are_is_an_error():
    with pytest.raises(UserError, match=r"num_samples=20000 is more than the embedded data set has; at most 10000"):
        load_split(DataConfig(num_samples=20_000))
