"""The core alone loads, converts, calibrates, saves and generates; what needs more says in one line what to install."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import uniattn_pl
from tests.without_extras import ABSENT, run_without
from uniattn_pl.cli import main
from uniattn_pl.extras import EXTRAS, MissingExtraError, missing_extra, require_extra

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"lm_eval": "lm_eval[api]"}
CORE = """
import uniattn_pl
from uniattn_pl.data import embedded_rows

model, tokenizer = uniattn_pl.load_model("tiny-llama"), uniattn_pl.load_tokenizer("tiny-llama")
uniattn_pl.apply_architecture(model, "uniattn", superblock_size=4, num_superblocks=1)
report = uniattn_pl.calibrate(model, tokenizer, embedded_rows(4), max_length=1024)
assert report.error_after < report.error_before
model.save_pretrained("model")
tokenizer.save_pretrained("model")

from uniattn_pl.cli import main

asked = ["generate", "--from", "model", "--prompt", "The heart", "--instruction", "--max-new-tokens", "4"]
codes = [
    main(words)
    for words in (
        asked,
        [*asked, "--dry-run"],
        ["plan", "model.source=tiny-llama", "architecture=baseline"],
        ["list", "architectures"],
        ["fit", "model.source=tiny-llama"],
        ["serve", "--from", "model"],
    )
]
print(codes)
from pathlib import Path

from uniattn_pl.families.catalogue import convert_gguf

for use in (lambda: uniattn_pl.CompensationInit, lambda: convert_gguf(Path("a.gguf"), Path("a"))):
    try:
        use()
    except uniattn_pl.UserError as error:
        print(error)
print(sorted(set(sys.modules) & {absent!r}))
"""


def test_the_core_alone_calibrates_and_generates(tmp_path: Path) -> None:
    done = run_without(CORE.replace("{absent!r}", repr(set(ABSENT))), tmp_path)
    assert done.returncode == 0, done.stderr
    *_, codes, callback, gguf, imported = done.stdout.splitlines()
    assert codes == "[0, 0, 0, 0, 2, 2]"
    assert imported == "[]"
    assert callback.startswith("uniattn_pl.CompensationInit needs lightning, which is not installed: ")
    assert gguf.startswith("reading 'a.gguf' needs gguf, which is not installed: ")
    assert gguf.endswith(" -m pip install 'uniattn-pl[gguf]'")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [line.partition(" -m ")[2] for line in errors] == [
        "pip install 'uniattn-pl[training]'",
        "pip install 'uniattn-pl[serving]'",
    ]
    assert "Traceback" not in done.stderr


def test_extras_are_those_of_the_project() -> None:
    extras = PROJECT["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        names = [requirement.split(">=")[0] for requirement in extras[extra]]
        assert sorted(names) == sorted(DISTRIBUTIONS.get(module, module) for module in modules)
    assert extras["all"] == [f"uniattn-pl[{','.join(EXTRAS)}]"]
    assert "uniattn-pl[all]" in extras["dev"]
    core = {requirement.split(">=")[0] for requirement in PROJECT["dependencies"]}
    assert not core & {module for modules in EXTRAS.values() for module in modules}


def test_an_import_that_fails_for_another_reason_is_not_explained_by_an_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert missing_extra(ModuleNotFoundError("no", name="numpy"), "this") is None
    assert missing_extra(ModuleNotFoundError("no", name="lightning.nothing"), "this") is None, "lightning is there"
    require_extra("training", "this")
    monkeypatch.setitem(EXTRAS, "training", ("lightning", "no_such_module"))
    with pytest.raises(MissingExtraError, match=r"^this needs no_such_module, which is not installed: "):
        require_extra("training", "this")
    assert main(["fit", "model.source=tiny-llama"]) == 2
    assert capsys.readouterr().err.startswith("error: uniattn-pl fit needs no_such_module, which is not installed")


def test_every_public_name_is_there_and_documented() -> None:
    for name in uniattn_pl.__all__:
        assert getattr(uniattn_pl, name) is not None
    assert set(uniattn_pl.__all__) <= set(dir(uniattn_pl))
    with pytest.raises(AttributeError, match="has no attribute 'load_modle'"):
        uniattn_pl.load_modle  # noqa: B018
