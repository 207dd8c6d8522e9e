"""`evaluate --server`: what a server says of a model is what the model says here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from tests.evaluation.test_evaluate import write_files
from tests.serving.server.server_process import started
from tokenizers.processors import TemplateProcessing

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.open_server import open_server
from uniattn_pl.modeling.loading.pretrained import load_folder, load_folder_tokenizer, load_model, load_tokenizer
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.training.fit import fit

pytest.importorskip("lm_eval", reason="the package lm_eval is not installed")

from lm_eval.api.instance import Instance

from uniattn_pl.evaluation.harness import harness_model
from uniattn_pl.evaluation.harness_server import ServedLM

WORDS = ["evaluate", "--from", "runs/tiny", "evaluation.tasks=[pubmedqa,commonsense_qa]"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a finished fit in runs/tiny, whose own figures are measured."""
    folder = tmp_path_factory.mktemp("served_evaluation")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(load_config(["tiny.yaml"]))
        assert main([*WORDS, "evaluation.probes=[held_out]"]) == 0
    return folder


@pytest.fixture
def folder(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(base)
    return base


def test_a_server_scores_as_the_model_and_both_stand_in_one_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with started("--from", "runs/tiny", "--port", "0", environment={"UNIATTN_PL_API_KEY": "secret"}) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        words = [*WORDS, "evaluation.probes=[held_out]", "--server", url]
        assert main(words) == 2
        assert "wants a key (401); put it into UNIATTN_PL_API_KEY" in capsys.readouterr().err
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("UNIATTN_PL_API_KEY", "secret")
            assert main([*words, "--dry-run"]) == 0
            assert main(words) == 0
    found = json.loads(Path("runs/tiny/evaluation/results.json").read_text())["results"]
    figures = {result["name"]: result["figures"] for result in found}
    assert list(figures) == [
        name + suffix for name in ("pubmedqa", "commonsense_qa", "held_out") for suffix in ("", "_served")
    ]
    for name in ("pubmedqa", "commonsense_qa"):
        assert figures[f"{name}_served"] == figures[name]
    own, served = figures["held_out"]["response_loss"], figures["held_out_served"]["response_loss"]
    assert served["value"] == pytest.approx(own["value"], abs=1e-5)
    assert served["low"] == pytest.approx(own["low"], abs=1e-5)
    rows = [[sample["row"] for sample in result["details"]] for result in found if "pubmedqa" in result["name"]]
    assert rows[0] == rows[1]
    manifest = Manifest.read(Path("runs/tiny"))
    assert manifest is not None
    assert manifest.mlflow_run_id is not None
    metrics = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_run(manifest.mlflow_run_id).data.metrics
    assert metrics["eval/held_out_served/response_loss"] == pytest.approx(own["value"], abs=1e-5)
    assert "held_out_served" in capsys.readouterr().out


class Answers(BaseHTTPRequestHandler):
    """Says what its server has been given for a path, from the second time on what it was given for later."""

    def do_GET(self) -> None:
        status, body = self.server.answers.get(self.path, (404, b"no such page"))  # type: ignore[attr-defined]
        if self.path in self.server.later:  # type: ignore[attr-defined]
            self.server.answers[self.path] = self.server.later[self.path]  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


class _Server(HTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that has seen enough goes away: nothing to print."""


@contextmanager
def answering(
    answers: dict[str, tuple[int, bytes]], later: dict[str, tuple[int, bytes]] | None = None
) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), Answers)
    server.answers, server.later = dict(answers), later or {}  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


MODELS = json.dumps({"data": [{"id": "m", "max_model_len": 64}]}).encode()
NO_ECHO = json.dumps({"choices": [{"text": "a", "logprobs": {"token_logprobs": [-1.0]}}]}).encode()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({}, "/v1/models answers 404: no such page"),
        ({"/v1/models": (200, b"<html>")}, "nothing that can be used answers at"),
        ({"/v1/models": (200, b"[]")}, "something else than a JSON object"),
        ({"/v1/models": (200, b"{}")}, "names no model"),
        ({"/v1/models": (200, b'{"data": ["m"]}')}, "names no model"),
        ({"/v1/models": (200, MODELS), "/v1/completions": (200, b'{"choices": [7]}')}, "no log-probabilities"),
        ({"/v1/models": (200, MODELS), "/v1/completions": (400, b"no echo")}, "/v1/completions answers 400: no echo"),
        ({"/v1/models": (200, MODELS), "/v1/completions": (200, NO_ECHO)}, "no log-probabilities of a prompt's tokens"),
    ],
)
def test_a_server_that_cannot_be_scored_is_told_before_anything_is_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], answers: dict[str, tuple[int, bytes]], message: str
) -> None:
    with answering(answers) as url:
        assert main([*WORDS, "--server", url]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert "evaluating" not in printed.out


def test_what_needs_the_model_itself_is_refused_with_all_problems(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "evaluation.probes=[held_out,divergence]", "--h2o", "0.5", "--server", "http://127.0.0.1:9"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "evaluation.probes: 'divergence' needs the model itself" in error
    assert "--server measures what is served" in error
    for url in ("127.0.0.1:9", "file:///etc/passwd"):
        assert main([*WORDS, "--server", url]) == 2
        assert f"--server '{url}' is no address of a server" in capsys.readouterr().err
    assert main([*WORDS, "--server", "http://127.0.0.1:9"]) == 2
    assert "nothing that can be used answers at http://127.0.0.1:9/v1/models (" in capsys.readouterr().err


@pytest.mark.parametrize("later", [(500, b"out of memory"), (200, b'{"choices": [{"index": 0}]}'), (200, b"<html>")])
def test_a_server_that_does_not_go_on_is_one_line_and_leaves_the_former_results(
    folder: Path, capsys: pytest.CaptureFixture[str], later: tuple[int, bytes]
) -> None:
    former = Path("runs/tiny/evaluation/results.json").read_bytes()
    models = json.dumps({"data": [{"id": "m", "max_model_len": 512}]}).encode()
    echo = json.dumps({"choices": [{"logprobs": {"token_logprobs": [None, -1.0, -1.0, -1.0]}}]}).encode()
    answers = {"/v1/models": (200, models), "/v1/completions": (200, echo)}
    with answering(answers, {"/v1/completions": later}) as url:
        assert main(["evaluate", "--from", "runs/tiny", "evaluation.probes=[held_out]", "--server", url]) == 1
    error = capsys.readouterr().err
    assert f"the server at {url} does not go on answering (" in error
    assert "Traceback" not in error
    assert Path("runs/tiny/evaluation/results.json").read_bytes() == former


def test_texts_and_answers_are_those_of_the_model_where_every_text_begins_with_bos(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("tiny-llama")
    begin = tokenizer.bos_token, tokenizer.bos_token_id
    template = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    tokenizer.backend_tokenizer.post_processor = template
    load_model("tiny-llama", dtype="float32").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    own = harness_model(load_folder(tmp_path), load_folder_tokenizer(tmp_path), batch_size=1, retain_rate=None)
    assert own.prefix == [begin[1]]
    text = Instance("loglikelihood_rolling", {}, ("A text about nothing, rather long. " * 3,), 0)
    prompts = [
        Instance("generate_until", {}, (words, {"until": ["qq"], "max_gen_toks": 8}), 0, ("a task", 0, 1))
        for words in ("The heart", "Count: one, two,")
    ]
    too_many = Instance("generate_until", {}, ("x", {"until": [], "max_gen_toks": 5000}), 0, ("a task", 0, 1))
    with started("--from", str(tmp_path), "--port", "0") as server:
        opened = open_server(f"http://127.0.0.1:{server.port}")
        served = ServedLM(opened, load_folder_tokenizer(tmp_path), concurrent=2)
        assert served.loglikelihood_rolling([text]) == pytest.approx(own.loglikelihood_rolling([text]), abs=1e-3)
        assert served.generate_until(prompts) == own.generate_until(prompts)
        with pytest.raises(UserError, match="'a task' has 5000 tokens generated, which leaves no room"):
            served.generate_until([too_many])


def test_rows_longer_than_the_server_takes_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = json.dumps({"data": [{"id": "m", "max_model_len": 8}]}).encode()
    echo = json.dumps({"choices": [{"logprobs": {"token_logprobs": [None, -1.0, -1.0, -1.0]}}]}).encode()
    with answering({"/v1/models": (200, tiny), "/v1/completions": (200, echo)}) as url:
        words = ["evaluate", "--from", "runs/tiny", "evaluation.probes=[held_out]", "--server", url]
        assert main(words) == 2
    assert "and the server takes 7 of a text" in capsys.readouterr().err
