"""A model folder from somebody else: its weights, adapters, code and names do nothing but give a model or a refusal."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from uniattn_pl.cli import main
from uniattn_pl.exporting.export import export
from uniattn_pl.families.catalogue import named_model
from uniattn_pl.modeling.loading.pretrained import (
    load_folder,
    load_folder_tokenizer,
    load_model,
    load_shape,
    load_tokenizer,
)

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "unheard_of"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
NO_SAFETENSORS = "no weights in safetensors"
Load = Callable[[Path], object]
LOADERS: dict[str, Load] = {"load_model": lambda folder: load_model(str(folder)), "load_folder": load_folder}


class Bomb:
    """Pickles to a call that creates the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mknod, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that exists once something has been executed."""
    return tmp_path / "executed"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model folder to spoil."""
    return Path(shutil.copytree(named_model("tiny-llama"), tmp_path / "model"))


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def with_code(model: Path, mark: Path) -> Path:
    """Give the model a type of its own, whose classes are in a file beside it."""
    (model / "own.py").write_text(CODE.format(mark=str(mark)))
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    change(model / "config.json", model_type="unheard_of", auto_map=classes)
    return model


def test_the_bomb_goes_off_where_pickle_is_read(mark: Path) -> None:
    """Otherwise the tests below would show nothing."""
    file = io.BytesIO()
    torch.save(Bomb(mark), file)
    file.seek(0)
    torch.load(file, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_refused_unread(
    model: Path, mark: Path, name: str, load: Load, user_error: Callable[..., None]
) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb(mark)}, model / "pytorch_model.bin")
    if name.endswith(".json"):
        (model / "pytorch_model.bin").rename(model / "part.bin")
        (model / name).write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "part.bin"}}))
    user_error(NO_SAFETENSORS, load, model)
    assert not mark.exists()


@pytest.mark.parametrize("words", [["generate", "--prompt", "x"], ["export", "--to", "exported"]], ids=lambda w: w[0])
def test_commands_on_a_folder_of_pickled_weights_exit_with_one_sentence(
    model: Path, mark: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model.parent)
    (model / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb(mark)}, model / "pytorch_model.bin")
    assert main([words[0], "--from", str(model), *words[1:]]) == 2
    assert NO_SAFETENSORS in capsys.readouterr().err
    assert not mark.exists()
    assert not Path("exported").exists()


def test_bench_refuses_pickled_weights(
    model: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model.parent)
    (model / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb(mark)}, model / "pytorch_model.bin")
    store = f"tracking.uri=sqlite:///{model.parent}/mlflow.db"
    assert main(["bench", f"model.source={model}", "architecture.num_superblocks=1", "bench.lengths=[8]", store]) == 2
    assert NO_SAFETENSORS in capsys.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/outside.safetensors", "part.bin"])
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_an_index_names_safetensors_files_of_its_folder_only(
    model: Path, mark: Path, shard: str, load: Load, user_error: Callable[..., None]
) -> None:
    shutil.move(model / "model.safetensors", model.parent / "outside.safetensors")
    torch.save({"lm_head.weight": Bomb(mark)}, model / "part.bin")
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": shard}}))
    user_error(f"names '{shard}'", load, model)
    assert not mark.exists()


def test_a_folder_with_shards_of_its_own_still_loads(model: Path) -> None:
    expected = load_model(str(model)).state_dict()
    load_model(str(model)).save_pretrained(model.parent / "sharded", max_shard_size="20KB")
    assert (model.parent / "sharded" / "model.safetensors.index.json").is_file()
    found = load_folder(model.parent / "sharded").state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_pickled_adapter_weights_are_refused_unread(model: Path, mark: Path, user_error: Callable[..., None]) -> None:
    from peft import get_peft_model

    from uniattn_pl.modeling.lora import lora_config

    base, adapter = load_model(str(model)), model.parent / "adapter"
    get_peft_model(base, lora_config(base, rank=2)).save_pretrained(adapter)
    change(adapter / "adapter_config.json", base_model_name_or_path=str(model))
    load_folder(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"lora": Bomb(mark)}, adapter / "adapter_model.bin")
    user_error(NO_SAFETENSORS, load_folder, adapter)
    assert not mark.exists()


CODE_READERS: dict[str, Load] = {**LOADERS, "load_shape": lambda folder: load_shape(str(folder))}


@pytest.mark.parametrize("load", CODE_READERS.values(), ids=CODE_READERS)
def test_code_of_a_model_is_not_run_and_nobody_is_asked(
    model: Path, mark: Path, load: Load, user_error: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever pipes `yes` has not read the code
    user_error("needs Python code that comes with it", load, with_code(model, mark))
    assert not mark.exists()


def test_the_message_names_the_key_and_the_key_works(
    model: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", f"model.source={with_code(model, mark)}", "architecture=baseline"]
    assert main(words) == 2
    assert "model.trust_remote_code=true" in capsys.readouterr().err
    assert not mark.exists()
    assert main([*words, "model.trust_remote_code=true"]) == 2
    assert "'unheard_of' is no language model that transformers knows" in capsys.readouterr().err
    assert mark.exists()
    assert type(load_model(str(model), trust_remote_code=True)).__name__ == "Model"


@pytest.mark.parametrize(
    "load", [lambda folder: load_tokenizer(str(folder)), load_folder_tokenizer], ids=["name", "dir"]
)
def test_code_of_a_tokenizer_is_not_run(
    model: Path, mark: Path, load: Load, user_error: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (model / "own.py").write_text(CODE.format(mark=str(mark)))
    tokenizer = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}}
    change(model / "tokenizer_config.json", **tokenizer)
    user_error("needs Python code that comes with it", load, model)
    assert not mark.exists()
    assert type(load_tokenizer(str(model), trust_remote_code=True)).__name__ == "Tokenizer"
    assert mark.exists()


def test_a_template_of_a_tokenizer_is_not_written_outside_of_the_export(model: Path) -> None:
    templates = [{"name": "default", "template": "x"}, {"name": "../../escaped", "template": "x"}]
    change(model / "tokenizer_config.json", chat_template=templates)
    with pytest.raises(ValueError, match="template name"):  # transformers' own guard
        export(model, model.parent / "deep" / "exported")
    assert not list(model.parent.rglob("escaped*"))


def test_a_script_is_no_data_source(model: Path, mark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = model / "rows.py"
    script.write_text(CODE.format(mark=str(mark)))
    for source in (script, model):
        assert main(["fit", "--config", str(config(model)), f"data.source={source}", "--dry-run"]) == 2
        assert "data" in capsys.readouterr().err
    assert not mark.exists()


def config(model: Path) -> Path:
    file = model.parent / "experiment.yaml"
    file.write_text(f"model: {{source: {model}}}\narchitecture: baseline\ntrainer: {{default_root_dir: {model}/run}}\n")
    return file
