import pytest
import torch

from uniattn_pl.data import Collator, Row, encode_rows, format_prompt
from uniattn_pl.errors import UserError

ROW = Row("Say why.", "Rain is wet.", "Because it is water.")


def test_the_prompt_is_alpacas():
    assert format_prompt("Say why.", "Rain {0}.") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nSay why.\n\n### Input:\nRain {0}."
        "\n\n### Response:"
    )
    assert format_prompt("Say why.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSay why.\n\n### Response:"
    )
    assert "### Instruction:\n\n\n### Input:\nWhy?" in format_prompt("", "Why?")


@pytest.mark.parametrize("bos", [False, True])
def test_labels_are_the_response_and_eos_only(bos, make_tokenizer):
    tokenizer = make_tokenizer(bos=bos)
    batch = Collator(tokenizer.pad_token_id)([encode_rows([ROW], tokenizer, 512)[0]])
    labels = batch["labels"][0]
    assert tokenizer.decode(labels[labels != -100]) == ROW.output + "<eos>"
    prompt = tokenizer.decode(batch["input_ids"][0][labels == -100])
    assert prompt == ("<bos>" if bos else "") + format_prompt(ROW.instruction, ROW.input)


def test_padding_is_right_and_masked_even_when_pad_is_eos(make_tokenizer):
    tokenizer = make_tokenizer(pad=False)
    rows = encode_rows([ROW, Row("Say why.", "Rain is wet.", "No.")], tokenizer, 512)
    batch = Collator(tokenizer.eos_token_id)([rows[0], rows[1]])
    assert batch["attention_mask"].sum(1).tolist() == rows.lengths.tolist()
    short = int(rows.lengths[1])
    assert batch["labels"][1, short - 1] == tokenizer.eos_token_id  # the real EOS is learned
    assert (batch["labels"][1, short:] == -100).all()
    assert (batch["input_ids"][1, short:] == tokenizer.eos_token_id).all()
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_truncation_cuts_the_end_and_drops_rows_without_a_response_token(tokenizer):
    prompt = len(format_prompt(ROW.instruction, ROW.input))
    full = prompt + len(ROW.output) + 1
    exact, cut, one = (encode_rows([ROW], tokenizer, limit) for limit in (full, full - 1, prompt + 1))
    assert (exact.counts.truncated, cut.counts.truncated, one.counts.truncated) == (0, 1, 1)
    assert tokenizer.decode(cut[0].tokens[prompt:]) == ROW.output
    assert tokenizer.decode(one[0].tokens[prompt:]) == ROW.output[0]
    none = encode_rows([ROW, ROW], tokenizer, prompt)
    assert (len(none), none.counts.dropped, none.counts.truncated) == (0, 2, 0)


def test_choices_and_the_position_that_predicts_the_answer(tokenizer):
    rows = [
        Row("Is it?", "Value 3.", "No. It is within.", "No", ("Yes", "No")),
        Row("Which one fits?", "A longer note.", "Gout. Crystals.", "Gout", ("Asthma", "Gout", "Eczema")),
        ROW,
    ]
    encoded = encode_rows(rows, tokenizer, 512, with_choices=True)
    batch = Collator(tokenizer.pad_token_id, with_choices=True)([encoded[i] for i in range(3)])
    assert [tokenizer.decode(ids[ids >= 0]) for ids in batch["choice_ids"]] == ["YN", "AGE", ""]
    assert batch["answer_index"].tolist() == [1, 1, -1]
    for row in range(2):
        predicted = batch["input_ids"][row, batch["answer_position"][row] + 1]
        assert predicted == batch["choice_ids"][row, batch["answer_index"][row]]
        assert batch["labels"][row, batch["answer_position"][row]] == -100


def test_choices_with_the_same_first_token_are_not_checked_but_counted(tokenizer):
    row = Row("Which?", "Note.", "Gout. Crystals.", "Gout", ("Graves disease", "Gout"))
    encoded = encode_rows([row], tokenizer, 512, with_choices=True)
    assert (encoded.counts.ambiguous, encoded.checkable, len(encoded)) == (1, False, 1)


def test_a_tokenizer_without_eos_is_refused(make_tokenizer):
    plain = make_tokenizer()
    plain.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        encode_rows([ROW], plain, 512)
