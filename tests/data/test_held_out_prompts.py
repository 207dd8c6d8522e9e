"""Held-out rows as a model is asked them: what stands in front of the answer in the sequence that is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from uniattn_pl.config import load_config
from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data.open_rows import data_module, held_out_prompts
from uniattn_pl.data.prompts import format_prompt
from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import byte_tokenizer

ASKED = [{"instruction": "Add.", "input": f"{n} + 1", "output": f"It is {n + 1}."} for n in range(9)]
TEXTS = [{"text": f"{n} green bottles hang on a wall that nobody ever looks at. " * 3} for n in range(9)]


def opened(folder: Path, rows: list[dict[str, Any]], *words: str) -> DataConfig:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = f"data.source={folder / 'rows.jsonl'}"
    return load_config([], [source, "data.validation_size=4", *words]).config.data


def test_a_row_is_asked_as_it_is_measured_and_found_again_by_its_number(tmp_path: Path) -> None:
    tokenizer, config = byte_tokenizer(), opened(tmp_path, ASKED)
    data = data_module(config, tokenizer, batch_size=1, micro_batch_size=1, eval_batch_size=1, seed=0)
    first = data.first_prompts(3)
    assert [prompt.number for prompt in first] == [0, 1, 2]
    assert held_out_prompts(config, tokenizer, [2, 0]) == [first[2], first[0]]
    measured = {tuple(batch["input_ids"][0].tolist()) for batch in data.validation_batches(4, 1)}
    for prompt in first:
        number = int(prompt.asked.split()[0])
        assert prompt.asked == f"{number} + 1"
        assert prompt.expected == f"It is {number + 1}."
        assert tokenizer.decode(prompt.ids, skip_special_tokens=True) == format_prompt("Add.", prompt.asked)
        assert any(sequence[: len(prompt.ids)] == tuple(prompt.ids) for sequence in measured)


def test_a_chat_is_asked_up_to_its_first_answer(tmp_path: Path) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "And?"), ("assistant", "Bye.")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}] * 9
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    (prompt,) = held_out_prompts(opened(tmp_path, rows, "data.template=chat"), tokenizer, [1])
    assert (prompt.asked, prompt.expected) == ("Hi", "Hello.")
    assert tokenizer.decode(prompt.ids, skip_special_tokens=True) == "[user] Hi\n[assistant] "


def test_the_beginning_of_a_plain_text_is_continued(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    (prompt,) = held_out_prompts(opened(tmp_path, TEXTS), tokenizer, [0])
    whole = f"{prompt.asked[0]} green bottles hang on a wall that nobody ever looks at. " * 3
    assert 8 < len(prompt.asked) <= 32
    assert whole.startswith(prompt.asked)
    assert prompt.asked + " " + prompt.expected in whole or prompt.asked + prompt.expected in whole


def test_a_number_that_no_row_has_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--row 4: .* are numbered from 0 to 3\."):
        held_out_prompts(opened(tmp_path, ASKED), byte_tokenizer(), [0, 4])
