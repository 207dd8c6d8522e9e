"""`serve` as people run it: a process, a port, the lines it prints, clients that go away, signals."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving.server.server_process import ServerProcess, started

from uniattn_pl.cli import main

KEY = "UNIATTN_PL_API_KEY"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    """A server on a port of its own."""
    with started("--from", str(folder), "--port", "0", "--parallel", "2", "--queue", "40") as server:
        yield server


def test_it_says_where_it_listens_and_what_it_prints_works(server: ServerProcess) -> None:
    first, *commands = server.lines
    assert re.fullmatch(r"serving tiny at http://127\.0\.0\.1:\d+/v1; Ctrl-C ends it\. Try:", first)
    completion, chat, client = map(shlex.split, commands)
    for words in (completion, chat):
        program, *options = words
        assert program == "curl"
        url, data = next(word for word in options if word.startswith("http")), options[options.index("-d") + 1]
        header = options[options.index("-H") + 1]
        status, answer = server.request("POST", url.partition(str(server.port))[2], data.encode(), [header])
        assert status == 200
        assert json.loads(answer)["usage"]["completion_tokens"] == 32
    code = client[2]
    assert client[1] == "-c"
    assert f"http://127.0.0.1:{server.port}/v1" in code
    compile(code, "printed", "exec")


def test_other_names_of_this_machine_are_refused(server: ServerProcess) -> None:
    assert server.request("GET", "/v1/models", headers=["Host: localhost"])[0] == 200
    assert server.request("GET", "/v1/models", headers=["Host: evil.example"])[0] == 400


def test_a_client_that_goes_away_ends_its_answer(server: ServerProcess) -> None:
    long = {"prompt": "ab", "max_tokens": 1500, "temperature": 0}
    for stream in (True, False):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("POST", "/v1/completions", json.dumps({**long, "stream": stream}), headers=JSON)
        if stream:
            assert connection.getresponse().readline().startswith(b"data: ")
        else:
            server.wait_for(running=1)
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        server.wait_for(running=0, waiting=0)
    assert server.ask(prompt="ab", max_tokens=2)[0] == 200


JSON = {"content-type": "application/json"}


def test_a_crowd_of_which_half_goes_away_does_not_disturb_the_others(server: ServerProcess) -> None:
    expected = server.ask(prompt="abc", max_tokens=40, temperature=0)[1]["choices"]
    connections = []
    for _ in range(12):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        asked = json.dumps({"prompt": "abc", "max_tokens": 40, "temperature": 0})
        connection.request("POST", "/v1/completions", asked, headers=JSON)
        connections.append(connection)
    for connection in connections[::2]:
        connection.close()
    answers = [json.loads(connection.getresponse().read())["choices"] for connection in connections[1::2]]
    assert answers == [expected] * 6
    server.wait_for(running=0, waiting=0)


def test_a_taken_port_is_told_with_all_else(
    server: ServerProcess, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", "--from", f"{folder}x", "--port", str(server.port), "--parallel", "0", "--engine", "vlm"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert f"--port {server.port} is taken on 127.0.0.1; end what listens there" in told
    assert "there is no engine 'vlm'. Did you mean 'vllm'?" in told
    assert "--parallel must be at least 1, got 0." in told
    assert f"there is no folder '{folder}x'" in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--port", "70000"], "--port is a number from 0 to 65535; got 70000."),
        (["--host", "no.such.host.invalid"], "--host 'no.such.host.invalid' is no name or address"),
        (["--host", "203.0.113.7", "--port", "0"], "--host '203.0.113.7' is no address of this machine"),
        (["--max-model-len", "4000", "--port", "0"], "--max-model-len 4000 is more than the 2048 positions of"),
        (["--queue", "1", "--engine", "vllm", "--port", "0"], "--queue is of --engine transformers"),
        (["--api-key", "x"], "unknown option '--api-key'"),
    ],
)
def test_what_cannot_be_served_is_told_before_anything_is_read(
    words: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--from", str(folder), *words]) == 2
    assert says in capsys.readouterr().err


def test_a_dry_run_says_what_it_would_do_and_listens_to_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--from", str(folder), "--port", "0", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    place = re.search(rf"would serve {folder} as 'tiny' at http://127.0.0.1:(\d+)/v1 with transformers", printed)
    assert place is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", int(place[1])))


def ends_at(server: ServerProcess, number: signal.Signals, headers: dict[str, str]) -> int:
    """Send a signal in the middle of an answer; returns the exit code."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    long = json.dumps({"prompt": "ab", "max_tokens": 1500, "temperature": 0, "stream": True})
    connection.request("POST", "/v1/completions", long, headers=headers)
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: ")
    server.process.send_signal(number)
    assert b"the server is shutting down" in answer.read()
    return server.process.wait(60)


def test_for_other_machines_it_wants_to_be_asked_and_sigterm_ends_it(folder: Path) -> None:
    with started("--from", str(folder), "--port", "0", "--host", "0.0.0.0", environment={KEY: "secret"}) as server:
        assert "it listens on 0.0.0.0: whoever has the key can use it" in server.lines[-1]
        assert f'"Authorization: Bearer ${KEY}"' in server.lines[1]
        assert server.ask(prompt="a")[0] == 401
        assert ends_at(server, signal.SIGTERM, {**JSON, "authorization": "Bearer secret"}) == 143
        said = server.errors()
        assert "SIGTERM received; the server has ended." in said
        assert "Traceback" not in said
        assert "secret" not in said + "".join(server.lines)


def test_ctrl_c_ends_it(server: ServerProcess) -> None:
    """The last test of this server."""
    assert ends_at(server, signal.SIGINT, JSON) == 130
    assert server.errors().splitlines() == ["SIGINT received; the server has ended."]
