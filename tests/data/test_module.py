import json
from itertools import chain

import pytest
import torch
from tests.chat_templates import template

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data import InstructionDataModule, load_split
from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import byte_tokenizer


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Task {i}.", "input": "x" * (i % 50), "output": "y" * (1 + i % 7)} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def module(tokenizer, source, *, rank=None, world_size=None, **options):
    config = DataConfig(source=str(source), **{"validation_size": 13, **options})
    sizes = {"batch_size": 16, "micro_batch_size": 4, "eval_batch_size": 3}
    return InstructionDataModule(config, tokenizer, **sizes, seed=0, rank=rank, world_size=world_size)


def responses(batches):
    """The labels of every sequence that counts, sorted."""
    rows = [row[row >= 0].tolist() for batch in batches for row in batch["labels"]]
    return sorted(row for row in rows if row)


def test_the_split_and_the_report(tokenizer, rows_file):
    data = module(tokenizer, rows_file)
    report = data.report
    assert (report.rows_read, report.train, report.validation, report.format) == (60, 47, 13, "alpaca")
    assert len(data.train_dataloader()) == 12
    counted = sum(int((batch["labels"] != -100).sum()) for batch in data.train_batches(100, 8))
    assert counted == report.response_tokens
    assert "60 rows read, 47 train, 13 validation" in report.lines()[0]
    assert len(report.lines()) == 2  # nothing was lost, so nothing more is said


def test_what_was_lost_is_counted_and_printed(tokenizer, rows_file):
    with rows_file.open("a") as file:
        file.write('{"instruction": "a"}\n')
        file.write(json.dumps({"instruction": "z" * 500, "input": "", "output": "y"}) + "\n")
    report = module(tokenizer, rows_file, on_bad_row="skip", max_length=220).report
    assert (report.rows_read, report.skipped, report.train_rows + report.validation_rows) == (62, 1, 61)
    assert report.dropped == 61 - report.train - report.validation >= 1
    assert report.truncated > 0
    printed = "\n".join(report.lines())
    assert "1 bad rows skipped" in printed
    assert f"{report.truncated} sequences cut at 220 tokens" in printed
    assert "the prompt alone has 220 tokens or more" in printed
    with pytest.raises(UserError, match=r"no training row of .* prompt shorter than data.max_length=8 tokens"):
        module(tokenizer, rows_file, on_bad_row="skip", max_length=8).setup()


def test_the_report_says_what_was_cut_of_chats(tmp_path):
    file, jinja = tmp_path / "chats.jsonl", tmp_path / "own.jinja"
    turns = [{"role": role, "content": content * 40} for role, content in (("user", "a"), ("assistant", "b"))]
    chats = [{"messages": turns * (1 + number % 2)} for number in range(20)]
    wrong = {"messages": [turns[0], *turns]}
    file.write_text("\n".join(map(json.dumps, [*chats, wrong, {"messages": turns[:1]}])))
    jinja.write_text(template("mistral", tagged=True))
    options = {"template": str(jinja), "max_length": 120, "on_bad_row": "skip", "validation_size": 4}
    report = module(byte_tokenizer(), file, **options).report
    assert (report.rows_read, report.filtered, report.refused) == (22, 1, 1)
    assert (report.shortened, report.turns_cut, report.truncated, report.open_answers) == (10, 20, 0, 0)
    assert report.train + report.validation == 20
    assert report.response_tokens == report.train * (1 + 40 + 1)
    printed = report.lines()
    assert f"(chat, template {jinja})" in printed[0]
    assert "1 rows left out because the chat template does not take them" in printed
    assert "10 chats cut between turns at 120 tokens, 20 turns in all" in printed
    assert (
        "1 rows left out (conversations in which the assistant says nothing, empty texts, pairs of equals)" in printed
    )


@pytest.mark.parametrize("packing", [False, True])
def test_two_ranks_learn_together_what_one_learns_of_chats(tmp_path, packing):
    file, jinja = tmp_path / "chats.jsonl", tmp_path / "own.jinja"
    chats = []
    for number in range(60):
        said = [
            ("user", "a" * (1 + number % 5)),
            ("assistant", f"{number}"),
            ("user", "c"),
            ("assistant", f"{number}!"),
        ]
        chats.append({"messages": [{"role": role, "content": text} for role, text in said[: 2 + number % 2 * 2]]})
    file.write_text("\n".join(map(json.dumps, chats)))
    jinja.write_text(template("mistral", tagged=False))
    options = {"template": str(jinja), "packing": packing, "max_length": 150}
    one = list(module(byte_tokenizer(), file, **options).train_dataloader())
    two = [list(module(byte_tokenizer(), file, rank=r, world_size=2, **options).train_dataloader()) for r in (0, 1)]
    assert responses(one) == responses([*two[0], *two[1]])
    assert len(two[0]) == len(two[1]) == -(-len(one) // 2)
    learned = sum(len(row) for row in responses(one))
    assert learned == module(byte_tokenizer(), file, **options).report.response_tokens


def test_num_samples_counts_training_and_validation_rows(tokenizer, rows_file):
    small = load_split(DataConfig(source=str(rows_file), validation_size=13, num_samples=20))
    whole = load_split(DataConfig(source=str(rows_file), validation_size=13))
    assert (len(small.train), len(small.validation)) == (7, 13)
    assert small.validation == whole.validation
    assert small.train == whole.train[:7]
    other = load_split(DataConfig(source=str(rows_file), validation_size=13, shuffle_seed=1))
    assert other.validation != whole.validation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_size": 60}, "data.validation_size=60 leaves no row to train on out of the 60 rows"),
        ({"validation_size": 99}, "it must be at most 59"),
        ({"validation_size": 20, "num_samples": 20}, "out of data.num_samples=20"),
    ],
)
def test_a_validation_part_that_takes_every_row_is_an_error(rows_file, options, message):
    with pytest.raises(UserError) as caught:
        load_split(DataConfig(source=str(rows_file), **options))
    assert message in str(caught.value)


def test_a_source_of_its_own_for_validation(rows_file, tmp_path):
    other = tmp_path / "validation.json"
    other.write_text(json.dumps([{"input": f"Question {i}", "output": "z"} for i in range(5)]))
    split = load_split(DataConfig(source=str(rows_file), validation_source=str(other)))
    assert (len(split.train), len(split.validation)) == (60, 5)
    with pytest.raises(UserError, match=r"validation_source is the same as data.source"):
        load_split(DataConfig(source=str(rows_file), validation_source=str(rows_file)))


def test_every_validation_row_counts_once_over_the_ranks(tokenizer, rows_file):
    alone = list(module(tokenizer, rows_file).val_dataloader())
    ranks = [list(module(tokenizer, rows_file, rank=rank, world_size=4).val_dataloader()) for rank in range(4)]
    assert len({len(batches) for batches in ranks}) == 1
    assert responses(chain.from_iterable(ranks)) == responses(alone)


def test_batches_name_their_rows_as_they_were_read(tokenizer, rows_file):
    with rows_file.open("a") as file:
        for _ in range(5):
            file.write(json.dumps({"instruction": "z" * 500, "input": "", "output": "y"}) + "\n")
    data = module(tokenizer, rows_file, max_length=300)
    split = load_split(data.config)
    assert data.report.dropped == 5 > data.report.validation_rows - data.report.validation
    seen = []
    for batch in data.train_dataloader():
        for row, labels in zip(batch["rows"].tolist(), batch["labels"], strict=True):
            if row >= 0:
                assert tokenizer.decode(labels[labels >= 0]) == split.train[row].output + "<eos>"
                seen.append(row)
    assert sorted(seen) == [index for index, row in enumerate(split.train) if len(row.instruction) < 100]


def test_two_ranks_share_every_optimizer_step(tokenizer, rows_file):
    def steps(ranks):
        micro = [[batch["rows"][batch["rows"] >= 0].tolist() for batch in rank.train_dataloader()] for rank in ranks]
        together = [sorted(chain(*batches)) for batches in zip(*micro, strict=True)]
        size = 16 // (4 * len(ranks))
        return [sorted(chain(*together[start : start + size])) for start in range(0, len(together), size)]

    both = [module(tokenizer, rows_file, rank=rank, world_size=2) for rank in range(2)]
    assert steps(both) == steps([module(tokenizer, rows_file)])
    assert [len(step) for step in steps(both)] == [16, 16, 15]


def test_packed_training_rows_and_single_validation_rows(tokenizer, rows_file):
    data, plain = module(tokenizer, rows_file, packing=True, max_length=1024), module(tokenizer, rows_file)
    batches = list(data.train_dataloader())
    packs = data.report.packs
    assert packs < 47 / 3
    assert len(batches) == -(-packs // 4)
    rows = torch.cat([batch["rows"].flatten() for batch in batches])
    assert sorted(rows[rows >= 0].tolist()) == list(range(47))
    assert all("attention_mask" not in batch for batch in batches)
    assert sum(int(batch["num_tokens"]) for batch in batches) == data.report.tokens
    assert "47 rows in" in data.report.lines()[2]
    assert responses(data.val_dataloader()) == responses(plain.val_dataloader())
    assert responses(data.train_batches(47, 8)) == responses(plain.train_batches(47, 8))
    state = data.train_dataloader().state_dict()
    with pytest.raises(UserError, match="packing was 1024 and is now 0"):
        plain.train_dataloader().load_state_dict(state)


def test_batches_for_calibration_are_the_first_rows(tokenizer, rows_file):
    data = module(tokenizer, rows_file)
    batches = data.train_batches(10, 4)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 2]
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches]).tolist()
    assert lengths == sorted(lengths, reverse=True)
    assert "choice_ids" not in batches[0]
    assert responses(data.train_batches(47, 47)) != responses(batches)


def test_embedded_validation_batches_carry_the_answers(tokenizer):
    data = InstructionDataModule(
        DataConfig(validation_size=30, num_samples=40, max_length=2_048),
        tokenizer,
        batch_size=4,
        micro_batch_size=4,
        eval_batch_size=8,
        seed=0,
    )
    for batch in data.validation_batches(30, 8):
        rows = torch.arange(len(batch["input_ids"]))
        right = batch["choice_ids"][rows, batch["answer_index"]]
        assert torch.equal(batch["input_ids"][rows, batch["answer_position"] + 1], right)
        assert (batch["answer_index"] >= 0).all()


def test_the_pmc_sample_splits_800_to_200(tokenizer, shared_train):
    split = load_split(DataConfig(source=str(shared_train / "pmc_llama_instructions_1000.json"), validation_size=200))
    assert (len(split.train), len(split.validation)) == (800, 200)
