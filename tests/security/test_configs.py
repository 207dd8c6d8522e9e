"""Config and plan files from somebody else: their values are text and numbers, never evaluated, never echoed whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from uniattn_pl.architectures import get_architecture
from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.loading.pretrained import load_shape

TAGS = ("object/apply:os.mknod", "object/new:os.mknod", "name:os.mknod", "module:os", "tuple")
RESOLVERS = (
    "${oc.decode:'[1]'}",
    "${oc.create:1}",
    "${oc.select:seed}",
    "${oc.env:${oc.decode:HOME}}",
    "${oc.${seed}:x}",
    "${eval:1+1}",
    "x${oc.dict.values:model}",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("where", ["key", "architecture option", "list", "override"])
def test_yaml_constructs_no_python_object(folder: Path, tag: str, where: str, user_error: Callable[..., None]) -> None:
    value = f"!!python/{tag} [{folder / 'executed'}]"
    if where == "override":
        user_error("python", load_config, [], [f"name={value}"])
    else:
        text = {"key": f"name: {value}", "list": f"bench: {{beside: [{value}]}}"}
        file = folder / "x.yaml"
        file.write_text(text.get(where, f"architecture: {{name: given, plan: {value}}}") + "\n")
        user_error("x.yaml:1", load_config, [file])
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("value", RESOLVERS)
@pytest.mark.parametrize("key", ["name", "model.source", "architecture.plan", "bench.beside"])
def test_a_value_calls_no_resolver_but_that_of_environment_variables(
    value: str, key: str, user_error: Callable[..., None]
) -> None:
    words = ["architecture=given"] if key == "architecture.plan" else []
    written = f"['{value}']" if key == "bench.beside" and "'" not in value else f'"{value}"'
    user_error("${oc.env:VARIABLE,default} only", load_config, [], [*words, f"{key}={written}"])


@pytest.mark.parametrize("value", ["${oc.decode:'[1]'}", "${seed}", "!!python/name:os.mknod", "__import__('os')"])
def test_what_an_environment_variable_holds_is_text(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", value)
    assert load_config([], ["tracking.experiment=${oc.env:SOMEWHERE}"]).config.tracking.experiment == value


@pytest.mark.parametrize(
    "content",
    ["!!python/object/apply:os.mknod [{mark}]", '{{"num_layers": "__import__(\'os\').mknod(\'{mark}\')", "rows": []}}'],
)
def test_a_plan_file_is_json_and_nothing_else(folder: Path, content: str, user_error: Callable[..., None]) -> None:
    plan = folder / "plan.json"
    plan.write_text(content.format(mark=folder / "executed"))
    given_plan = get_architecture("given")(plan=str(plan))  # type: ignore[call-arg]
    user_error("plan", given_plan.compile, load_shape("tiny-llama"))
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("how", ["--config", "include"])
def test_a_file_that_is_no_config_is_not_shown(folder: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A config of somebody else may include the file of a token."""
    (folder / "token").write_text("hf_abcdefghijkl\n")
    (folder / "other.yaml").write_text("include: token\n")
    assert main(["plan", "--config", "token" if how == "--config" else "other.yaml"]) == 2
    printed = capsys.readouterr()
    assert "only text" in printed.err
    assert "hf_abc" not in printed.err + printed.out


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/tmp/x", ".hidden", "~", "a\0b", "", "${model.source}"])
def test_a_name_stays_in_its_folder(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        load_config([], [f"name={name}", "model.source=a/b"])
