"""Other engines' servers as child processes: started as they are, waited for, signalled; or refused with the reason."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.serving.server.server_process import ServerProcess, started

from uniattn_pl.cli import main
from uniattn_pl.inference.generation import generate
from uniattn_pl.modeling.conversion.convert import apply_architecture
from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer

ENGINE = f"""\
#!{sys.executable}
import http.server, json, os, signal, sys
words = sys.argv[1:]
if words[0] == "-c":
    sys.exit()  # asked which modules it does not find
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        key = os.environ.get("LLAMA_API_KEY") or os.environ.get("VLLM_API_KEY")
        self.wfile.write(json.dumps([words, key]).encode())
    def log_message(self, *_):
        pass
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
if "broken" in words:
    sys.exit("no such architecture")
place = words[words.index("--host") + 1], int(words[words.index("--port") + 1])
http.server.HTTPServer(place, Answer).serve_forever()
"""


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """An environment with a `llama-server` that says how it was called."""
    file = tmp_path / "bin/llama-server"
    file.parent.mkdir()
    file.write_text(ENGINE)
    file.chmod(0o755)
    return {"PATH": f"{file.parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    return file


def test_an_engine_is_started_waited_for_and_signalled(gguf: Path, program: dict[str, str]) -> None:
    words = ("--from", str(gguf), "--engine", "llama.cpp", "--port", "0", "--max-model-len", "256", "--parallel", "2")
    with started(*words, environment={**program, "UNIATTN_PL_API_KEY": "secret"}) as server:
        called, key = json.loads(server.request("GET", "/health")[1])
        place = ["--host", "127.0.0.1", "--port", str(server.port)]
        assert called == ["--model", str(gguf), "--alias", "model", *place, "--ctx-size", "256", "--parallel", "2"]
        assert key == "secret"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 7, "its exit code is passed on"


def ask_for_ever(server: ServerProcess) -> None:
    while True:
        server.request("GET", "/health")


def test_vllm_is_started_in_its_own_environment(folder: Path, program: dict[str, str]) -> None:
    python = program["PATH"].partition(os.pathsep)[0] + "/llama-server"
    words = ("--from", str(folder), "--engine", "vllm", "--port", "0", "--parallel", "2", "--engine-python", python)
    with started(*words, environment={"UNIATTN_PL_API_KEY": "secret"}) as server:
        called, key = json.loads(server.request("GET", "/health")[1])
        place = ["--host", "127.0.0.1", "--port", str(server.port), "--served-model-name", "tiny"]
        assert called[2:] == ["--model", str(folder), *place, "--dtype", "float32", "--max-num-seqs", "2"]
        assert key == "secret"
        server.process.kill()
        server.process.wait()
        with pytest.raises(ConnectionError):  # the engine goes with it
            ask_for_ever(server)


def test_an_engine_that_ends_at_once_passes_its_code_on(
    gguf: Path, program: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", program["PATH"])
    words = ["serve", "--from", str(gguf), "--engine", "llama.cpp", "--port", "0", "--model-name", "broken"]
    assert main(words) == 1
    printed = capfd.readouterr()
    assert "no such architecture" in printed.err
    assert "llama.cpp ended before it was ready" in printed.err
    assert "serving" not in printed.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--engine", "vllm"], "there is no interpreter '.venv-serving/bin/python'; name one with --engine-python"),
        (["--engine", "vllm", "--engine-python", "/none/python"], "there is no interpreter '/none/python'"),
        (["--engine-python", "python"], "--engine-python is of --engine vllm; leave it out."),
    ],
)
def test_an_engine_that_is_not_here_is_told_with_one_that_is(
    words: list[str],
    says: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIATTN_PL_SERVING_PYTHON", raising=False)
    assert main(["serve", "--from", str(folder), "--port", "0", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_plan_that_llama_cpp_cannot_say_is_told_with_an_engine_that_can(
    folder: Path, program: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", program["PATH"])
    assert main(["serve", "--from", str(folder), "--port", "0", "--engine", "llama.cpp"]) == 2
    told = capsys.readouterr().err
    assert "layers 5-7: llama.cpp's deci architecture has no attention map" in told
    assert "vLLM serves it" in told


def test_an_environment_without_vllm_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("vllm") is not None:
        pytest.skip("this environment has vLLM")
    monkeypatch.setenv("UNIATTN_PL_SERVING_PYTHON", sys.executable)
    assert main(["serve", "--from", str(folder), "--port", "0", "--engine", "vllm"]) == 2
    told = capsys.readouterr().err
    assert f"the environment of '{sys.executable}' has no vllm" in told
    assert "--engine transformers serves it without." in told


def test_a_gguf_file_is_for_llama_cpp(gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for engine, says in (("transformers", "which --engine llama.cpp serves"), ("vllm", "vLLM takes a folder")):
        assert main(["serve", "--from", str(gguf), "--port", "0", "--engine", engine]) == 2
        assert says in capsys.readouterr().err
    assert main(["serve", "--from", f"{gguf.parent}/none.gguf", "--port", "0"]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_an_adapter_and_a_plan_that_vllm_does_not_know_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = tmp_path / "unknown"
    shutil.copytree(folder, unknown)
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps(config | {"model_type": "uniattn_phi3"}))
    assert main(["serve", "--from", str(unknown), "--port", "0", "--engine", "vllm"]) == 2
    told = capsys.readouterr().err
    assert "vLLM serves no plans of model_type 'uniattn_phi3'" in told
    assert "--engine transformers serves every plan." in told
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    assert main(["serve", "--from", str(tmp_path / "adapter"), "--port", "0", "--engine", "vllm"]) == 2
    assert "is an adapter, which --engine vllm does not take; export it first." in capsys.readouterr().err


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
def test_llama_cpp_itself_answers_as_our_own_server_does(tmp_path: Path, folder: Path) -> None:
    """A run is written for it; the server's end leaves nothing of that."""
    model = load_model("tiny-llama", dtype="float32")
    apply_architecture(model, "llmdrop", layers=[3, 5])
    model.save_pretrained(tmp_path / "dropped")
    load_tokenizer("tiny-llama").save_pretrained(tmp_path / "dropped")
    prompt, place = "The heart pumps", tmp_path / "files"
    place.mkdir()
    words = ("--from", str(tmp_path / "dropped"), "--engine", "llama.cpp", "--port", "0", "--max-model-len", "256")
    with started(*words, environment={"TMPDIR": str(place)}) as server:
        assert [file.name for file in place.rglob("*.gguf")] == ["model.gguf"]
        _, answer = server.ask(prompt=prompt, max_tokens=12, temperature=0)
        expected = generate(tmp_path / "dropped", [prompt], max_new_tokens=12)
        assert [choice["text"] for choice in answer["choices"]] == expected
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 143
    assert list(place.iterdir()) == []
