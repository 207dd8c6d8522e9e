"""What wins over what, when interpolations resolve, and that the printed config is the config."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from uniattn_pl.architectures import CLA, Baseline, UniAttn
from uniattn_pl.config import load_config
from uniattn_pl.errors import UserError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_later_files_win_over_earlier_ones_and_overrides_over_both(tmp_path: Path) -> None:
    first = write(tmp_path, "first.yaml", "seed: 1\nname: first\ntraining: {batch_size: 8, micro_batch_size: 2}")
    second = write(tmp_path, "second.yaml", "seed: 2\nname: second")
    config = load_config([first, second], ["seed=3"]).config
    assert (config.seed, config.name, config.training.batch_size) == (3, "second", 8)


def test_a_file_wins_over_what_it_includes_wherever_the_include_stands(tmp_path: Path) -> None:
    write(tmp_path, "blocks/data.yaml", "data: {max_length: 64, validation_size: 10}\nname: block")
    write(tmp_path, "blocks/model.yaml", "include: data.yaml\nmodel: {source: tiny-llama}")
    file = write(tmp_path, "a.yaml", "data: {max_length: 128}\ninclude: [blocks/model.yaml]")
    config = load_config([file]).config
    assert (config.name, config.model.source) == ("block", "tiny-llama")
    assert (config.data.max_length, config.data.validation_size) == (128, 10)


def test_interpolations_see_the_overrides(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", "name: run-${seed}\nseed: 1\ncalibration: {batch_size: '${training.batch_size}'}")
    config = load_config([file], ["seed=7", "training.batch_size=12"]).config
    assert config.name == "run-7"
    assert config.trainer.default_root_dir == "runs/run-7"
    assert config.calibration.batch_size == 12


def test_environment_variables_are_converted_to_the_type_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIATTN_TEST_SEED", "11")
    assert load_config([], ["seed=${oc.env:UNIATTN_TEST_SEED}"]).config.seed == 11
    assert load_config([], ["seed=${oc.env:UNIATTN_TEST_UNSET,5}"]).config.seed == 5


def test_another_architecture_drops_the_options_of_the_former_one(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", "architecture: {name: uniattn, superblock_size: 2, first_layer: 3}")
    assert load_config([file]).architecture == UniAttn(superblock_size=2, first_layer=3)
    assert load_config([file], ["architecture.name=baseline"]).architecture == Baseline()
    overrides = ["architecture.superblock_size=3", "architecture=cla"]
    assert load_config([file], overrides).architecture == CLA(superblock_size=3)
    assert load_config([file], ["architecture.name=uniattn"]).architecture == UniAttn(superblock_size=2, first_layer=3)


def test_text_of_the_model_has_a_short_form(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data:\n  source: {self: 500, prompts: embedded, tokens: 64}\n")
    short = load_config([tmp_path / "a.yaml"], ["data.self_text.tokens=32"])
    words = [
        "data.source=self",
        "data.self_text.rows=500",
        "data.self_text.prompts=embedded",
        "data.self_text.tokens=32",
    ]
    assert short.config == load_config([], words).config
    assert short.config == load_config([], ["data.source={self: 500, prompts: embedded, tokens: 32}"]).config
    assert short.provenance["data.self_text.rows"].endswith("a.yaml:2")


def test_all_that_is_wrong_with_text_of_the_model_is_told_at_once(tmp_path: Path) -> None:
    source = "{self: 4, tokns: 7, temperature: 0}"
    (tmp_path / "a.yaml").write_text(f"data:\n  source: {source}\n  further_sources: [wiki.raw]\n")
    with pytest.raises(UserError) as caught:
        load_config([tmp_path / "a.yaml"])
    expected = (
        "a.yaml:2: unknown key 'data.self_text.tokns'. Did you mean 'data.self_text.tokens'?",
        "data.further_sources: there is no data file 'wiki.raw'",
        "data.validation_source: is needed: text that begins with bos has no held-out rows.",
        "a.yaml:2: data.self_text.temperature: must be above 0, got 0",
    )
    assert len(caught.value.problems) == len(expected)
    for problem, part in zip(caught.value.problems, expected, strict=True):
        assert part in problem


def test_text_stays_as_it_was_written() -> None:
    config = load_config([], ["model.revision=1e5", "name=1.10", "tracking.experiment=no"]).config
    assert (config.model.revision, config.name, config.tracking.experiment) == ("1e5", "1.10", "no")


def test_numbers_without_a_dot_are_numbers() -> None:
    assert load_config([], ["training.stage2.learning_rate=2e-5"]).config.training.stage2.learning_rate == 2e-5


def test_yaml_tags_are_not_executed(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", "name: !!python/object/apply:os.getcwd []")
    with pytest.raises(UserError, match=r"a\.yaml:1.*python/object"):
        load_config([file])


def test_provenance_names_file_and_line_or_the_override(tmp_path: Path) -> None:
    write(tmp_path, "block.yaml", "\n\ndata: {max_length: 64}")
    file = write(tmp_path, "a.yaml", "include: block.yaml\nname: a\n")
    loaded = load_config([file], ["seed=4"])
    assert loaded.provenance["data.max_length"] == f"{tmp_path / 'block.yaml'}:3"
    assert loaded.provenance["name"] == f"{file}:2"
    assert loaded.provenance["seed"] == "override 'seed=4'"
    assert loaded.provenance["architecture.superblock_size"] == "default"
    assert f"name: a  # {file}:2\n" in loaded.to_yaml()


def test_flatten_has_one_plain_value_per_key() -> None:
    flat = load_config([], ["architecture=llmdrop", "architecture.layers=[1, 2]"]).flatten()
    assert flat["architecture.layers"] == [1, 2]
    assert flat["training.stage1.learning_rate"] == 1e-4


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 10**9),
        "model.revision": st.none() | TEXT,
        "tracking.experiment": TEXT,
        "training.stage2.learning_rate": st.floats(0, 1e6),
        "training.max_grad_norm": st.none() | st.floats(0, 1e3),
        "trainer.deterministic": st.booleans(),
        "trainer.devices": st.sampled_from(["auto", 1, -1, "0,"]),
        "architecture.first_layer": st.none() | st.integers(0, 100),
        "data.on_bad_row": st.sampled_from(["error", "skip"]),
    },
)


@settings(max_examples=30, deadline=None)
@given(values=OVERRIDES)
def test_the_printed_config_loads_to_the_same_config(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("round_trip")
    literal = {k: v.replace("$", "") or "x" if isinstance(v, str) else v for k, v in values.items()}
    words = [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=1e9)}" for key, value in literal.items()]
    loaded = load_config([], [word.replace("\n...\n", "\n") for word in words])
    flat = loaded.flatten()
    assert {key: flat[key] for key in literal} == literal
    again = load_config([write(folder, "printed.yaml", loaded.to_yaml())])
    assert asdict(again.config) == asdict(loaded.config)
    assert again.architecture == loaded.architecture


def test_text_with_an_escaped_interpolation_survives_printing(tmp_path: Path) -> None:
    loaded = load_config([], [r"tracking.experiment='a \${seed} \\\${x}'"])
    assert "${seed}" in loaded.config.tracking.experiment
    again = load_config([write(tmp_path, "printed.yaml", loaded.to_yaml(provenance=False))])
    assert again.config == loaded.config


def test_mlflows_variable_says_where_the_store_is_where_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    loaded = load_config([], ["model.source=tiny-llama"])
    assert loaded.config.tracking.uri == "http://tracker:5000"
    assert "uri: http://tracker:5000  # $MLFLOW_TRACKING_URI\n" in loaded.to_yaml()
    assert load_config([], ["tracking.uri=sqlite:///own.db"]).config.tracking.uri == "sqlite:///own.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert load_config([]).config.tracking.uri == "sqlite:///mlruns/mlflow.db"
