"""Every Python snippet of README and docs/ runs, on a tiny model, and those of docs/extending.md do what is said."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tests.docs.documented import PAGES, ROOT
from tests.tiny_models import stock
from torch.utils.data import DataLoader

import uniattn_pl
from uniattn_pl import architectures
from uniattn_pl.cli import main
from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data.rows import CHAT_FORMATS, FORMATS
from uniattn_pl.data.sources import read_source
from uniattn_pl.modeling.attention.operate import ATTENTIONS
from uniattn_pl.plan.roles import ROLES

REGISTRIES: tuple[dict[str, Any], ...] = (FORMATS, architectures.ARCHITECTURES, ROLES, ATTENTIONS)

# What a reader has instead: models of a size to use, and their own module and data.
REPLACED = {
    '"smollm2-135m"': '"tiny-llama"',
    '"path-or-name"': '"tiny-llama"',
    "num_superblocks=4": "num_superblocks=1",
    '"runs/NAME/initial"': '"folder"',
}


def snippets() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start(1)) + 1
            place = f"{page.relative_to(ROOT)}:{line}"
            yield pytest.param("\n" * (line - 1) + match[1], place, id=place)


def shown(beginning: str, page: str = "docs/extending.md") -> str:
    """The snippet of a page that has this text."""
    (found,) = (param.values[0] for param in snippets() if page in param.values[1] and beginning in param.values[0])
    return str(found)


class MyLightningModule(pl.LightningModule):
    """A reader's own module, which learns nothing."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.0)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What snippets take for granted; what they register is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    model = uniattn_pl.load_model("tiny-llama", dtype="float32")
    uniattn_pl.apply_architecture(model, "uniattn", superblock_size=4, num_superblocks=1)
    model.save_pretrained("folder")
    stock("smollm3").config.save_pretrained("organisation/model")
    ids = torch.arange(3, 19).reshape(1, 16)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    known = [dict(registry) for registry in REGISTRIES]
    yield {
        **batch,
        "model": model,
        "my_data": DataLoader([batch], batch_size=None),
        "MyLightningModule": MyLightningModule,
        "__name__": "__main__",
    }
    for registry, former in zip(REGISTRIES, known, strict=True):
        registry.clear()
        registry.update(former)


def run(code: str, place: str, names: dict[str, Any]) -> None:
    for theirs, ours in REPLACED.items():
        code = code.replace(theirs, ours)
    exec(compile(code, str(ROOT / place.partition(":")[0]), "exec"), names)


@pytest.mark.parametrize(("code", "place"), snippets())
def test_a_snippet_runs(code: str, place: str, names: dict[str, Any]) -> None:
    run(code, place, names)


def test_the_architecture_is_known_to_the_command_line(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(shown("class EveryOther"), "docs/extending.md", names)
    assert main(["plan", "model.source=tiny-llama", "architecture.name=every_other"]) == 0
    printed = capsys.readouterr().out
    assert "every_other on tiny-llama" in printed
    assert "map of 4" in printed
    assert main(["list", "architectures"]) == 0
    assert "each odd layer of the top half reuses the map below it" in capsys.readouterr().out


def test_own_rows_are_taken_as_they_are_written(names: dict[str, Any]) -> None:
    run(shown("my_rows.jsonl", "docs/data.md"), "docs/data.md", names)
    source = read_source("my_rows.jsonl")
    assert source.format == "alpaca"
    assert [row.choices for row in source.rows] == [("yes", "no")]


def test_a_new_row_format_reads_a_file(names: dict[str, Any]) -> None:
    run(shown("def map_question"), "docs/extending.md", names)
    rows = [{"question": "Why?", "answers": ["Because."]}, {"question": "When?"}, {"answers": ["Now."]}]
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = read_source("questions.jsonl", format="question", on_bad_row="skip")
    assert [row.output for row in source.rows] == ["Because."]
    assert (source.filtered, source.skipped) == (1, 1)
    assert source.first_problem == "questions.jsonl, line 3: the key 'question' must hold text"


def test_the_page_lists_the_formats_that_the_config_and_the_reader_know() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = re.findall(
        r"^\| `(\w+)` \|", text.partition("| format | keys of a row |")[2].split("\n\n")[0], re.MULTILINE
    )
    (field,) = (field for field in dataclasses.fields(DataConfig) if field.name == "format")
    assert table == [name for name in field.metadata["allowed"] if name != "auto"]
    assert sorted(table) == sorted([*FORMATS, *CHAT_FORMATS])
