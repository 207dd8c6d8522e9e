"""A fit is finished once its files give the model it trained; updates that cannot be saved rightly are refused."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.tiny_fit import BASE, ROWS
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from uniattn_pl import lora_config
from uniattn_pl.cli import main
from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import byte_tokenizer
from uniattn_pl.modeling.loading.pretrained import load_folder
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.training import fit
from uniattn_pl.training.lightning_module import PostTrainingModule

CONFIG = (
    BASE
    + """
training: {batch_size: 2, micro_batch_size: 2, stage1: {max_steps: 1}, stage2: {max_steps: 1, learning_rate: 1.0e-3}}
tracking: {uri: "sqlite:///%s", artifact_location: artifacts}
"""
)
FIT = ["fit", "--config", "tiny.yaml"]
PLAIN = ["architecture.name=baseline"]
LORA = ["training.lora.enabled=true", "training.lora.rank=2", "training.stage2.learning_rate=0.1"]
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the module: making its tables takes seconds."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.yaml").write_text(CONFIG % database, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loses_a_tensor(weights: Weights) -> Weights:
    return {name: weight for name, weight in weights.items() if name != "model.layers.3.mlp.up_proj.weight"}


def rounds(weights: Weights) -> Weights:
    return {name: weight.bfloat16().to(weight.dtype) for name, weight in weights.items()}


def swaps_two_layers(weights: Weights) -> Weights:
    other = {"layers.2.": "layers.3.", "layers.3.": "layers.2."}

    def source(name: str) -> str:
        return next((name.replace(a, b) for a, b in other.items() if a in name), name)

    return {name: weights[source(name)] for name in weights}


def damage_what_is_saved(monkeypatch: pytest.MonkeyPatch, folder: str, damage: Callable[[Weights], Weights]) -> None:
    save = PreTrainedModel.save_pretrained

    def damaged(model: PreTrainedModel, target: Path, **options: object) -> None:
        save(model, target, **options)
        if Path(target).name.startswith(f".{folder}-"):
            file = Path(target) / "model.safetensors"
            save_file(damage(load_file(file)), file, metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", damaged)


@pytest.mark.parametrize(
    ("damage", "where", "words", "told"),
    [
        (loses_a_tensor, "final", PLAIN, r"layers\.3\.mlp\.up_proj\.weight missing"),
        (rounds, "final", PLAIN, r"loss is \d\.\d{6} in memory and \d\.\d{6} from its files"),
        (swaps_two_layers, "final", [], r"loss is \d\.\d{6} in memory and \d\.\d{6} from its files"),
        (swaps_two_layers, "stage1", [], r"loss is \d\.\d{6} in memory and \d\.\d{6} from its files"),
        (swaps_two_layers, "initial", [], r"loss is \d\.\d{6} in memory and \d\.\d{6} from its files"),
        (swaps_two_layers, "final", LORA, r"loss is \d\.\d{6} in memory and \d\.\d{6} from its files"),
    ],
)
def test_a_save_that_changes_the_model_is_told_and_the_fit_is_not_finished(
    damage: Callable[[Weights], Weights],
    where: str,
    words: list[str],
    told: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage_what_is_saved(monkeypatch, where, damage)
    assert main([*FIT, *words]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert f"runs/tiny/{where}" in error
    assert re.search(told, error), error
    manifest = Manifest.read(folder / "runs/tiny")
    assert manifest is not None
    assert manifest.phase == {"initial": "initialise", "stage1": "stage1", "final": "stage2"}[where]
    assert (folder / "runs/tiny" / where / "config.json").is_file(), "the folder is kept"


def test_the_same_command_goes_on_once_saving_works_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        damage_what_is_saved(patch, "final", rounds)
        assert main([*FIT, *PLAIN]) == 1
    assert main([*FIT, *PLAIN]) == 0


@pytest.mark.parametrize("words", [[], LORA, ["training.stage2.enabled=false"], ["model.dtype=bfloat16", *LORA]])
def test_the_loss_of_a_fit_is_that_of_its_files(words: list[str], folder: Path) -> None:
    assert main([*FIT, *words]) == 0
    manifest = Manifest.read(folder / "runs/tiny")
    assert manifest is not None
    fitted = [m for r in manifest.results.values() for m in r.get("milestones", {}).values()][-1]
    assert main(["evaluate", "--config", "tiny.yaml", *words, "evaluation.probes=[held_out]"]) == 0
    results = json.loads((folder / "runs/tiny/evaluation/results.json").read_text())["results"]
    assert results[0]["figures"]["response_loss"]["value"] == pytest.approx(fitted["response_loss"], abs=1e-6)


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_final_model_damaged_before_the_end_is_written_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fit, "finish", killed)
        assert main([*FIT, *PLAIN]) == 130
    file = folder / "runs/tiny/final/model.safetensors"
    sound = file.read_bytes()
    save_file(rounds(load_file(file)), file, metadata={"format": "pt"})
    assert main([*FIT, *PLAIN]) == 0
    assert file.read_bytes() == sound


def test_an_interrupted_stage_gives_ctrl_c_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(PostTrainingModule, "training_step", killed)
    assert main([*FIT, *PLAIN]) == 130
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def tied_model(folder: Path) -> PreTrainedModel:
    """A tiny model whose two embeddings are one weight, saved as a model folder."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_updates_of_tied_weights_are_refused_before_anything_is_made(
    dry: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tied_model(folder / "tied")
    words = ["model.source=tied", "training.lora.enabled=true", "training.lora.target_modules=[q_proj,lm_head]"]
    assert main([*FIT, *dry, *words]) == 2
    error = capsys.readouterr().err
    assert "training.lora.target_modules: an update of 'lm_head' would change 'model.embed_tokens'" in error
    assert not (folder / "runs/tiny/initial").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": r".*\.(q_proj|embed_tokens)"},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_parameters": ["embed_tokens.weight"]},
    ],
)
def test_every_way_of_naming_a_tied_weight_is_refused(options: dict[str, object], folder: Path) -> None:
    model = tied_model(folder / "tied")
    with pytest.raises(UserError, match=r"as they are one weight in this model \(tied\)"):
        lora_config(model, **options)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    lora_config(model, **options)


def test_weights_that_layers_share_are_found_whatever_they_are_called(folder: Path) -> None:
    model = tied_model(folder / "tied")
    assert lora_config(model, target_modules="all-linear").target_modules == "all-linear", "without the embedding"
    model.model.layers[2].mlp = model.model.layers[1].mlp
    with pytest.raises(UserError, match=r"'model.layers.2.mlp.up_proj' would change 'model.layers.1.mlp.up_proj'"):
        lora_config(model, target_modules=["up_proj"])
    with pytest.raises(UserError, match="would change"):
        lora_config(model, target_modules="all-linear")


def test_an_adapter_on_tied_weights_is_not_merged(folder: Path) -> None:
    model = tied_model(folder / "tied")
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"], r=2))
    adapted.save_pretrained(folder / "foreign")
    config = json.loads((folder / "foreign/adapter_config.json").read_text())
    (folder / "foreign/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "tied"}))
    with pytest.raises(UserError, match=r"foreign': an update of 'lm_head' would change"):
        load_folder(folder / "foreign")
