"""Several sources with weights: what an epoch draws of each, on any number of ranks, resumed anywhere."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.conftest import byte_tokenizer

from uniattn_pl.config import load_config
from uniattn_pl.config.sections.data_section import DataConfig, SourceConfig
from uniattn_pl.config.sections.dpo_section import DPO
from uniattn_pl.config.sections.model_section import ModelConfig
from uniattn_pl.data import InstructionDataModule, Row, SourceRows, load_split
from uniattn_pl.data import mixture as mixture_module
from uniattn_pl.data.mixture_loader import EpochShares, MixtureLoader, shares
from uniattn_pl.data.open_rows import data_module
from uniattn_pl.data.preference_data import PreferenceDataModule
from uniattn_pl.data.self_text import Original
from uniattn_pl.errors import UserError
from uniattn_pl.resilience.identity import TRAINING_ROWS
from uniattn_pl.tracking.data_inputs import held_out_rows, training_rows

TOKENIZER = byte_tokenizer()
WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=5)


def rows_file(folder: Path, name: str, count: int) -> str:
    rows = [{"instruction": f"{name} {n}", "input": "", "output": "y" * (1 + n % 7)} for n in range(count)]
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def mixture(folder: Path, **options: Any) -> DataConfig:
    """Sources of 30, 12 and 9 rows, of which two each are held out."""
    entries = [
        SourceConfig(rows_file(folder, "large", 30), weight=1),
        SourceConfig(rows_file(folder, "middle", 12), weight=2),
        SourceConfig(rows_file(folder, "small", 9), weight=1),
    ]
    return DataConfig(**{"sources": entries, "validation_size": 6, "token_cache": False, **options})


def module(config: DataConfig, **options: Any) -> InstructionDataModule:
    sizes = {"batch_size": 8, "micro_batch_size": 2, "eval_batch_size": 4}
    return InstructionDataModule(config, TOKENIZER, **{**sizes, "seed": 3, **options})


def loader(config: DataConfig, **options: Any) -> MixtureLoader:
    found = module(config, **options).train_dataloader()
    assert isinstance(found, MixtureLoader)
    return found


def drawn(batches: Any) -> list[list[int]]:
    return [[int(row) for row in batch["rows"].flatten() if row >= 0] for batch in batches]


def flat(parts: list[list[Any]]) -> list[Any]:
    return [one for part in parts for one in part]


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 1_000))
def test_shares_add_up_and_are_the_weights_but_for_rounding(weights: list[float], more: int) -> None:
    total = len(weights) + more
    counts = shares(total, weights)
    assert sum(counts) == total
    assert min(counts) >= 1
    for count, weight in zip(counts, weights, strict=True):
        exact = total * weight / sum(weights)
        assert count < exact + 1 or count == 1
        assert count > exact - 1 or min(counts) == 1, "less than its share only where another has too little"


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.data())
def test_no_sequence_is_drawn_again_before_all_of_its_source_were(counts: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.none() | st.lists(st.floats(0.1, 9), min_size=len(counts), max_size=len(counts)))
    epochs = EpochShares(tuple(counts), None if weights is None else tuple(weights), seed=1)
    seen = Counter[int]()
    for epoch in range(4):
        items = epochs.epoch(epoch)
        assert epochs.source_of(items).bincount(minlength=len(counts)).tolist() == list(epochs.drawn)
        seen.update(items.tolist())
        for source, count in enumerate(counts):
            first = sum(counts[:source])
            times = [seen[item] for item in range(first, first + count)]
            assert max(times) - min(times) <= 1


def test_each_source_holds_out_as_many_rows_whatever_its_weight(tmp_path: Path) -> None:
    config = mixture(tmp_path)
    split = load_split(config)
    names = [row.instruction.split()[0] for row in split.validation]
    assert Counter(names) == {"large": 2, "middle": 2, "small": 2}
    assert [(part.train_rows, part.validation_rows) for part in split.parts] == [(28, 2), (10, 2), (7, 2)]
    others = [replace(entry, weight=7, num_samples=5) for entry in config.sources or []]
    fewer = load_split(replace(config, sources=others))
    assert fewer.validation == split.validation
    assert [part.train_rows for part in fewer.parts] == [5, 5, 5]
    assert set(map(str, fewer.train)) < set(map(str, split.train))
    elsewhere = load_split(replace(config, validation_source=rows_file(tmp_path, "other", 20)))
    assert [part.train_rows for part in elsewhere.parts] == [30, 12, 9]
    assert {row.instruction.split()[0] for row in elsewhere.validation} == {"other"}
    first_few = module(config).validation_batches(3, 3)
    assert sorted(int(row) // 2 for row in first_few[0]["rows"]) == [0, 1, 2], "one of each source"


def test_an_epoch_has_the_shares_that_the_report_and_the_metrics_say(tmp_path: Path) -> None:
    data = module(mixture(tmp_path))
    report = data.report
    assert [source.drawn for source in report.sources] == [11, 23, 11]  # of 45 = 28 + 10 + 7
    assert [source.sequences for source in report.sources] == [28, 10, 7]
    (line,) = [line for line in report.lines() if "middle.jsonl (alpaca)" in line]
    assert (
        "12 rows read, 10 train, 2 validation; weight 2: 23 of 45 sequences an epoch (51.1%), 2.30 times its 10" in line
    )
    assert data.report.source_counts()["data/source_1/drawn"] == 23
    batches = data.train_dataloader()
    epoch = Counter(flat(drawn(batches)))
    assert [sum(epoch[row] for row in rows) for rows in (range(28), range(28, 38), range(38, 45))] == [11, 23, 11]
    assert list(batches.source_counts().values()) == [11, 23, 11]
    plain = module(mixture(tmp_path, sources=[replace(e, weight=None) for e in mixture(tmp_path).sources or []]))
    assert sorted(flat(drawn(plain.train_dataloader()))) == list(range(45))


@pytest.mark.parametrize("packing", [False, True])
def test_ranks_together_draw_what_one_draws_and_a_resumed_loader_goes_on_exactly(tmp_path: Path, packing: bool) -> None:
    config = mixture(tmp_path, packing=packing, max_length=400)
    alone = loader(config)
    whole = [drawn(alone) for _ in range(3)]
    ranks = [loader(config, rank=rank, world_size=2) for rank in range(2)]
    for epoch in whole:
        parts = [drawn(rank) for rank in ranks]
        assert sorted(flat(flat(parts))) == sorted(flat(epoch))
    in_order = flat(whole)
    for taken in (0, 3, len(alone), len(alone) + 5):
        interrupted = loader(config)
        before = []
        while len(before) < taken:
            before += drawn(islice(iter(interrupted), taken - len(before)))
        resumed = loader(config, micro_batch_size=2)
        resumed.load_state_dict(interrupted.state_dict())
        counts = resumed.source_counts().values()
        assert sum(counts) == sum(len(batch) for batch in before) or packing
        after = drawn(resumed)
        assert before + after == in_order[: len(before + after)]
    other = loader(replace(config, sources=[replace(entry, weight=1) for entry in config.sources or []]))
    with pytest.raises(UserError, match=r"mixture was .* and is now"):
        other.load_state_dict(alone.state_dict())


def test_calibration_draws_by_weight(tmp_path: Path) -> None:
    data = module(mixture(tmp_path))
    rows = flat(drawn(data.train_batches(20, 4)))
    assert len(set(rows)) == 20
    assert sum(28 <= row < 38 for row in rows) >= 7, "half of the weight is the middle one's, by size it has a quarter"
    everything = flat(drawn(data.train_batches(100, 4)))
    assert sorted(everything) == list(range(45))
    assert data.train_length(0) == int(data.train_batches(1, 1)[0]["num_tokens"])


def test_which_source_a_row_is_of_is_content(tmp_path: Path) -> None:
    rows = [json.dumps({"instruction": str(n), "input": "", "output": "o"}) for n in range(8)]

    def identity(border: int) -> str:
        for name, part in (("a", rows[:border]), ("b", rows[border:])):
            (tmp_path / f"{name}.jsonl").write_text("\n".join(part))
        entries = [SourceConfig(str(tmp_path / f"{name}.jsonl")) for name in "ab"]
        other = rows_file(tmp_path, "held_out", 4)
        return (
            module(DataConfig(sources=entries, validation_source=other, token_cache=False))
            .contents[TRAINING_ROWS]
            .digest
        )

    assert identity(4) == identity(4) != identity(5)


def test_rows_that_are_held_out_too_are_told_and_left_out_if_asked(tmp_path: Path) -> None:
    trained = ["What  is\nrain?", "what is RAIN?", "Caf\u00e9", "Something else"]
    held_out = ["What is rain?", "cafe\u0301", "Nothing"]
    for name, prompts in (("train", trained), ("held_out", held_out)):
        rows = [{"instruction": prompt, "input": "", "output": f"o{n}"} for n, prompt in enumerate(prompts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(
        source=str(tmp_path / "train.jsonl"), validation_source=str(tmp_path / "held_out.jsonl"), token_cache=False
    )
    split = load_split(config)
    assert (split.overlap, split.overlap_train, split.removed) == (2, 3, 0)
    assert any(
        "2 validation rows have the prompt, or the text, of a training row (3 training rows, which" in line
        for line in module(config).report.lines()
    )
    for without in (
        replace(config, remove_overlap=True),
        replace(config, remove_overlap=True, source="embedded", sources=[SourceConfig(config.source)]),
    ):
        split = load_split(without)
        assert [row.instruction for row in split.train] == ["Something else"]
        assert (split.overlap, split.removed) == (0, 3)
    assert any("3 training rows left out" in line for line in module(without).report.lines())


ONE = "{source: embedded}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.sources=[]"], "data.sources: expected one source at least, got none"),
        (["data.sources=embedded"], "data.sources: expected a list, each item a mapping of source, format"),
        (["data.sources=[embedded]"], "data.sources: entry 1: expected a mapping of source, format"),
        (["data.sources=[{sorce: embedded}]"], "entry 1: unknown key 'sorce'. Did you mean 'source'?"),
        (["data.sources=[{source: embedded, weight: much}]"], "entry 1: weight: expected a number or null, got 'much'"),
        (["data.sources=[{source: embedded, weight: 0}]"], "entry 1: weight: must be above 0, got 0"),
        (["data.sources=[{source: embedded, weight: -1}]"], "entry 1: weight: must be above 0, got -1"),
        (["data.sources=[{source: embedded, num_samples: 0}]"], "entry 1: num_samples: must be at least 1, got 0"),
        ([f"data.sources=[{ONE}, {ONE}]"], "entry 2: 'embedded' is entry 1 already"),
        (["data.sources=[{source: embedded, weight: 1}, {source: a/b}]"], "entry 2 has no weight, and others have"),
        (["data.sources=[{weight: 1}]"], "entry 1: source: expected 'self', 'embedded', "),
        (["data.sources=[{source: no.jsonl}]"], "entry 1: there is no data file 'no.jsonl'"),
        (["data.sources=[{source: embedded, format: text2}]"], "entry 1: format: must be one of auto, alpaca"),
        (
            ["data.sources=[{source: embedded, format: pmc, text_column: x}]"],
            "entry 1: text_column: 'x' holds plain text, but format is 'pmc'",
        ),
        (
            [f"data.sources=[{ONE}]", "data.source=a/b"],
            "names all sources of a mixture, and data.source ('a/b') others",
        ),
        ([f"data.sources=[{ONE}]", "data.further_sources=[a/b]"], "and data.further_sources others: give either"),
        ([f"data.sources=[{ONE}]", "data.num_samples=3"], "data.num_samples: counts the rows of data.source"),
        ([f"data.sources=[{ONE}]", "data.format=pmc"], "every entry of data.sources has its own"),
        (["data.sources=[{source: self}]"], "data.validation_source: is needed"),
        (
            ["training.objective=dpo", "data.sources=[{source: embedded_pairs, weight: 1}]"],
            "training.objective=dpo takes every pair once an epoch; leave the weights",
        ),
        (["data.text_column=x", "data.format=pmc"], "data.text_column: 'x' holds plain text, but format is 'pmc'"),
    ],
)
def test_a_wrong_entry_is_one_clear_message(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([], words)
    assert len(caught.value.problems) == 1
    assert message in str(caught.value)


def test_entries_resolve_references_and_are_one_value_that_loads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWS", str(tmp_path))
    rows_file(tmp_path, "large", 3)
    file = tmp_path / "a.yaml"
    file.write_text(
        "data:\n  sources:\n  - {source: '${oc.env:ROWS}/large.jsonl', weight: 1}\n"
        "  - {source: $ROWS/large.jsonl, split: b, weight: 2}\n"
    )
    loaded = load_config([file])
    assert [entry.source for entry in loaded.config.data.sources or []] == [f"{tmp_path}/large.jsonl"] * 2
    (tmp_path / "b.yaml").write_text(loaded.to_yaml())
    assert load_config([tmp_path / "b.yaml"]).config == loaded.config


def test_a_held_out_row_is_found_behind_text_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = SourceRows("self", "self", [Row("", "", "text")] * 5, array("q", range(1, 6)), read=5)
    monkeypatch.setattr(mixture_module, "self_rows", lambda *_: sampled)
    entries = [
        SourceConfig(rows_file(tmp_path, "a", 9)),
        SourceConfig("self"),
        SourceConfig(rows_file(tmp_path, "b", 9)),
    ]
    split = load_split(DataConfig(sources=entries, validation_size=4), Original(ModelConfig()))
    assert [part.validation_rows for part in split.parts] == [2, 0, 2]
    for validation, rows in ((True, split.validation), (False, split.train)):
        for index, row in enumerate(rows):
            name, _, number = row.instruction.partition(" ")
            place = f"{name}.jsonl, line {int(number) + 1}" if name else "self, row"
            assert place in split.place(index, "train", validation=validation)


def test_pairs_of_several_sources_are_pairs_of_their_own_rows(tmp_path: Path) -> None:
    for name in "ab":
        pairs = [{"prompt": f"{name}{n}?", "chosen": f"yes {name}{n}", "rejected": f"no {name}{n}"} for n in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    entries = [SourceConfig(str(tmp_path / f"{name}.jsonl")) for name in "ab"]
    config = DataConfig(sources=entries, validation_size=4, token_cache=False)
    sizes = {"batch_size": 4, "micro_batch_size": 2, "eval_batch_size": 4, "seed": 0}
    data = data_module(config, TOKENIZER, DPO, **sizes)
    assert isinstance(data, PreferenceDataModule)
    data.setup()
    said = []
    for batch in data.pair_dataloader():
        texts = TOKENIZER.batch_decode(batch["input_ids"], skip_special_tokens=True)
        both = [text.rpartition("Response:")[2].split() for text in texts]
        said += [(*chosen, *rejected) for chosen, rejected in zip(both[:2], both[2:], strict=True)]
    assert len(said) == len(set(said)) == 8
    assert all((yes, no) == ("yes", "no") and one == other for yes, one, no, other in said)


def test_a_mixture_is_one_input_of_mlflow(tmp_path: Path) -> None:
    config = mixture(tmp_path)
    names = [entry.source for entry in config.sources or []]
    trained, held_out = training_rows(config, "0" * 64, 45), held_out_rows(config, "1" * 64, 6)
    assert trained.name == held_out.name == "large.jsonl + middle.jsonl + small.jsonl"
    assert all(name in trained.source["tags"]["mlflow.source.name"] for name in names)
    streamed = training_rows(DataConfig(source="a/b", streaming=True), "0" * 64, 7)
    assert (streamed.rows, streamed.source["path"]) == (None, "a/b")


def test_a_source_without_a_row_left_is_named(tmp_path: Path) -> None:
    config = mixture(tmp_path, validation_size=27)
    with pytest.raises(
        UserError, match=r"entry 3: no row of .*small.jsonl' is left to train on: it has 9, of which 9 are"
    ):
        load_split(config)
