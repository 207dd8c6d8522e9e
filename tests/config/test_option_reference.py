"""The reference of all keys is what the schema enforces: as a page, as a listing, as a JSON schema for editors."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from tests.docs.documented import ROOT, SHIPPED

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.config.json_schema import experiment_schema
from uniattn_pl.config.option_reference import key_names
from uniattn_pl.config.reference_page import SCHEMA_FILE, reference_page
from uniattn_pl.config.yaml_scalars import parse_value

RENEW = "run: uniattn-pl list options --format "
CHECK = jsonschema.Draft7Validator(experiment_schema())


def problems(text: str) -> list[str]:
    value = parse_value(text)
    return [leaf.message for error in CHECK.iter_errors(value) for leaf in (error.context or [error])]


def test_the_page_is_what_the_schema_says() -> None:
    page = ROOT / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == reference_page(), f"stale; {RENEW}markdown > docs/configuration.md"


def test_the_file_for_editors_is_what_the_schema_says() -> None:
    shipped = json.loads((ROOT / "docs" / SCHEMA_FILE).read_text(encoding="utf-8"))
    assert shipped == experiment_schema(), f"stale; {RENEW}json-schema > docs/{SCHEMA_FILE}"


def test_every_key_that_can_be_set_is_in_it() -> None:
    """The keys of a loaded config come from another walk through the schema."""
    loaded = load_config([], ["model.source=tiny-llama"]).flatten()
    names = loaded.keys() - {"architecture", "sweep.slurm"}
    options = {f"architecture.{name}" for name in load_config([]).config.architecture}
    assert names | options <= set(key_names())


def test_the_schema_for_editors_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(experiment_schema())


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_editors_accept_every_shipped_file(file: Path) -> None:
    assert problems(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "architecture: cla",
        "architecture: {superblock_size: 3}",
        "architecture: {name: from_a_package, anything: 1}",
        "data: {source: {self: 100}}",
        "data: {source: [a.jsonl, b.jsonl], sources: null}",
        "name: ${oc.env:USER}-1\nseed: ${oc.env:SEED,0}",
        "include: [a.yaml]\ntraining:",
        "trainer: {devices: auto}",
        "trainer: {devices: 2}",
    ],
)
def test_editors_accept_what_the_program_reads(text: str) -> None:
    assert problems(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "trainig: {}",
        "training: {batch_sise: 3}",
        "training: {batch_size: 0}",
        "training: {batch_size: many}",
        "training: {keep: beast}",
        "architecture: {name: cla, selection: top}",
        "data: {sources: [{sorce: embedded}]}",
        "training: {stage1: {enabled: 3}}",
    ],
)
def test_editors_mark_what_the_program_refuses(text: str) -> None:
    assert problems(text)


@pytest.mark.parametrize(
    ("section", "shown", "hidden"),
    [
        ("training.stage2", ["training.stage2.learning_rate=2.0e-05"], ["training.stage1.", "training.batch_size"]),
        ("training", ["training.batch_size=48  # a whole number", "training.lora.rank=16"], ["trainer.devices"]),
        ("data.packing", ["data.packing=false  # true or false"], ["data.source="]),
        ("uniattn", ["architecture.superblock_size=4"], ["architecture.merge"]),
        ("data.sources", ["data.sources[].weight=null"], ["data.packing"]),
    ],
)
def test_one_section_or_key_is_listed(
    section: str, shown: list[str], hidden: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "options", section]) == 0
    printed = capsys.readouterr().out
    assert all(line in printed for line in shown)
    assert not any(line in printed for line in hidden)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["options", "learning_rate"],
            "Did you mean calibration.refine.learning_rate or training.stage1.learning_rate",
        ),
        (["options", "trainig"], "Did you mean 'training'?"),
        (["models", "training"], "are for `list options`"),
    ],
)
def test_what_is_no_section_is_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *words]) == 2
    assert message in capsys.readouterr().err
