"""Many clients at one server for minutes: are the answers those of one at a time, and does its memory grow?

    python benchmarks/server_load.py --minutes 10

Starts `serve` on a tiny converted model (or on `--from FOLDER`) and sends requests of mixed lengths and kinds from
`--clients` threads: whole answers, streams, clients that go away in the middle, bodies that are wrong. Answers that
the seed determines are compared with those of the same requests one at a time. Prints a line a minute, and exits with
1 when an answer differed or the resident memory grew by more than 5 % behind the first minute.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

KINDS = 40  # different requests
MOST_GROWTH = 1.05
JSON = {"content-type": "application/json"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", help="a run or model folder; default: a tiny model with UniAttn")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long")
    parser.add_argument("--clients", type=int, default=16, help="threads that ask")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="server-load-") as place:
        source = arguments.source or _tiny_model(Path(place) / "tiny")
        command = [sys.executable, "-m", "uniattn_pl", "serve", "--from", source, "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            found = re.search(r":(\d+)/v1", server.stdout.readline())
            if found is None:
                return 1  # it has said why
            return _load(server, int(found[1]), arguments.clients, 60 * arguments.minutes)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


def _tiny_model(folder: Path) -> str:
    import uniattn_pl
    from uniattn_pl.modeling.loading.pretrained import load_tokenizer

    model = uniattn_pl.load_model("tiny-llama", dtype="float32")
    uniattn_pl.apply_architecture(model, "uniattn", superblock_size=4, num_superblocks=1)
    model.save_pretrained(folder)
    load_tokenizer("tiny-llama").save_pretrained(folder)
    return str(folder)


def _body(kind: int) -> dict[str, Any]:
    draw = random.Random(kind)
    text = "".join(draw.choice("abcdefgh ") for _ in range(draw.randint(1, 400)))
    body = {"prompt": text, "max_tokens": draw.randint(1, 40), "temperature": draw.choice([0, 1]), "seed": kind}
    return body | draw.choice([{}, {"n": 2}, {"echo": True, "logprobs": 3}, {"stop": ["e"]}])


def _ask(port: int, body: dict[str, Any]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", "/v1/completions", json.dumps(body), JSON)
    answer = connection.getresponse()
    return answer.status, answer.read()


def _choices(answer: bytes) -> Any:
    return json.loads(answer)["choices"]


class _Clients:
    """What all clients have seen."""

    def __init__(self, port: int, alone: list[Any], end: float) -> None:
        self.port, self.alone, self.end = port, alone, end
        self.counts = dict.fromkeys(("answers", "streams", "left", "refused", "wrong"), 0)
        self._lock = threading.Lock()

    def run(self, seed: int) -> None:
        """Ask until the end."""
        draw = random.Random(seed)
        while time.monotonic() < self.end:
            what = draw.choices(("answers", "streams", "left", "refused"), (6, 2, 1, 1))[0]
            right = getattr(self, f"_{what}")(draw.randrange(KINDS))
            with self._lock:
                self.counts[what] += 1
                self.counts["wrong"] += not right

    def _answers(self, kind: int) -> bool:
        status, answer = _ask(self.port, _body(kind))
        return status == 200 and _choices(answer) == self.alone[kind]

    def _streams(self, kind: int) -> bool:
        _, answer = _ask(self.port, {**_body(kind), "stream": True})
        texts: dict[int, str] = {}
        *events, last, _ = answer.decode().split("\n\n")
        for event in events:
            (choice,) = json.loads(event.removeprefix("data: "))["choices"]
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        return last == "data: [DONE]" and list(texts.values()) == [choice["text"] for choice in self.alone[kind]]

    def _left(self, kind: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("POST", "/v1/completions", json.dumps({**_body(kind), "max_tokens": 800}), JSON)
        connection.close()
        return True

    def _refused(self, kind: int) -> bool:
        bodies = ({"prompt": "a" * 3000}, {"promt": "a"}, {"prompt": "a", "model": "b"}, {"prompt": [10**9]})
        return _ask(self.port, bodies[kind % len(bodies)])[0] in (400, 404, 422)


def _load(server: subprocess.Popen[str], port: int, count: int, seconds: float) -> int:
    alone = [_choices(_ask(port, _body(kind))[1]) for kind in range(KINDS)]
    start = time.monotonic()
    clients = _Clients(port, alone, start + seconds)
    threads = [threading.Thread(target=clients.run, args=(seed,), daemon=True) for seed in range(count)]
    for thread in threads:
        thread.start()
    held = []
    while alive := [thread for thread in threads if thread.is_alive()]:
        alive[0].join(min(60.0, seconds / 4))
        held.append(_resident(server.pid))
        done = ", ".join(f"{number} {what}" for what, number in clients.counts.items())
        print(f"{time.monotonic() - start:.0f} s: {held[-1] / 2**20:.1f} MiB resident; {done}", flush=True)
    grown = held[-1] / held[0]
    print(f"memory {grown - 1:+.1%} behind the first minute; {clients.counts['wrong']} of all were wrong")
    return int(grown > MOST_GROWTH or clients.counts["wrong"] > 0)


def _resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    raise SystemExit(main())
