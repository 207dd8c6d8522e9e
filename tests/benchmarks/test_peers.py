"""The benchmark of peers: what is ours of it, on a tiny model; peers run in environments of their own."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.peers import environment_setup, inputs, methods, protocol
from benchmarks.peers.__main__ import main
from benchmarks.peers.render import table
from tests.tiny_models import SATURATES
from transformers import AutoModelForCausalLM, DynamicCache, QuantizedCache

import uniattn_pl
from uniattn_pl.architectures import UniAttn
from uniattn_pl.evaluation.retrieval import CANDIDATES
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.modeling.loading.pretrained import load_tokenizer

PROMPT, LENGTH = 40, 60
REUSED = {"superblock_size": 4, "num_superblocks": 1}


@pytest.fixture(scope="module")
def stock() -> Any:
    return uniattn_pl.load_model("tiny-llama", dtype="float32")


@pytest.fixture(scope="module")
def uniattn(stock: Any) -> Any:
    return converted_copy(stock, UniAttn(**REUSED).compile(shape_of(stock.config)))


@pytest.fixture(scope="module")
def rows(stock: Any) -> list[dict[str, Any]]:
    drawn = torch.randint(0, stock.config.vocab_size, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    return [{"ids": ids.tolist(), "prompt": PROMPT} for ids in drawn]


def plain(model: Any, **options: Any) -> protocol.Method:
    return protocol.Method("plain", model, lambda: DynamicCache(config=model.config), **options)


def test_a_loss_read_from_the_cache_is_that_of_one_forward(uniattn: Any, rows: list[dict[str, Any]]) -> None:
    found = protocol.response_loss(plain(uniattn), rows)
    with torch.no_grad():
        logits = uniattn(torch.tensor([row["ids"] for row in rows]), use_cache=False).logits[:, PROMPT - 1 : -1]
    targets = torch.tensor([row["ids"][PROMPT:] for row in rows])
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    assert found["loss"] == pytest.approx(float(each.mean()), abs=1e-4)
    assert found["by_row"] == pytest.approx(each.mean(1).tolist(), abs=1e-4)
    assert found["tokens"] == 3 * (LENGTH - PROMPT)


@pytest.mark.parametrize("kind", ["stock", "uniattn"])
@torch.no_grad()
def test_a_press_hides_what_it_gives_up_from_every_layer_alike(
    kind: str, rows: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    """Read after a press that keeps given tokens, a response is that of one forward whose mask hides the others."""
    model, ids = request.getfixturevalue(kind), rows[0]["ids"]
    kept = torch.randperm(PROMPT, generator=torch.Generator().manual_seed(1))[: PROMPT // 2]

    def score(module: Any, hidden: Any, keys: torch.Tensor, values: Any, attentions: Any, named: Any) -> torch.Tensor:
        scores = torch.zeros(keys.shape[:3])
        scores[..., kept] = 1.0
        return scores

    press = SimpleNamespace(score=score, compression_ratio=0.5)
    method = plain(model, press=methods.pressed(model, press))
    _, reading = protocol.begin(method, ids[:PROMPT])
    whole = protocol.begin(plain(model), ids[:PROMPT])[1]
    assert 2 * protocol.held_bytes(reading.cache) == protocol.held_bytes(whole.cache)
    logits = protocol.read_on(method, reading, ids[PROMPT:])
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    gone = [index for index in range(PROMPT) if index not in kept.tolist()]
    seen[PROMPT:, gone] = False
    mask = torch.zeros(LENGTH, LENGTH).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
    expected = model(torch.tensor([ids]), attention_mask=mask, use_cache=False).logits[0, PROMPT:]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    hidden = model(torch.tensor([ids]), use_cache=False).logits[0, PROMPT:]
    assert float((hidden - expected).abs().max()) > 1e-2, "the mask hides nothing that matters"


@pytest.mark.parametrize("kind", ["stock", "uniattn"])
def test_bytes_are_those_that_the_package_counts(
    kind: str, rows: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    for make in (lambda: DynamicCache(config=model.config), lambda: QuantizedCache("fp8", model.config)):
        _, reading = protocol.begin(protocol.Method("one", model, make), rows[0]["ids"])
        assert protocol.held_bytes(reading.cache) == uniattn_pl.kv_cache_bytes(reading.cache) > 0
    pairs = tuple((torch.zeros(2, 3), torch.zeros(4, dtype=torch.uint8)) for _ in range(2))
    assert protocol.held_bytes(pairs) == 2 * (24 + 4)
    former = SimpleNamespace(key_cache=[torch.zeros(5)], value_cache=[torch.zeros(2)])
    assert protocol.held_bytes(former) == 28


@pytest.mark.skipif(not SATURATES, reason="fp8 caches are NaN with this torch, of stock models too")
def test_the_likeliest_candidate_is_the_answer_whatever_was_read_before(
    uniattn: Any, rows: list[dict[str, Any]]
) -> None:
    """Candidates share one cache, which none may spoil for the next: each is scored as by a forward of its own."""
    prompt = rows[0]["ids"][:PROMPT]
    candidates = [rows[1]["ids"][:3], rows[2]["ids"][:2], rows[1]["ids"][5:8]]

    def alone(answer: list[int]) -> float:
        with torch.no_grad():
            logits = uniattn(torch.tensor([prompt + answer]), use_cache=False).logits[0, PROMPT - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())

    best = max(candidates, key=alone)
    others = [answer for answer in candidates if answer is not best]
    group = {"prompt": prompt, "length": 512, "number": 0}
    asked = [
        {**group, "group": "found", "answers": [best, *others]},
        {**group, "group": "missed", "answers": [*others, best]},
    ]
    for make, shallow in ((lambda: DynamicCache(config=uniattn.config), False), (quantised(uniattn), True)):
        found = protocol.retrieval(protocol.Method("one", uniattn, make, shallow=shallow), asked)
        assert found == {"found": {"right": 1, "trials": 1}, "missed": {"right": 0, "trials": 1}}


def quantised(model: Any) -> Any:
    return lambda: QuantizedCache("fp8", model.config)


def test_a_stock_folder_is_read_by_older_versions_too(stock: Any, tmp_path: Path) -> None:
    inputs.write_stock(stock, load_tokenizer("tiny-llama"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == stock.config.rope_parameters["rope_theta"]
    assert config["torch_dtype"] == "float32"
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in stock.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_questions_are_the_probes_of_the_package_and_end_where_the_answer_begins() -> None:
    tokenizer = load_tokenizer("tiny-llama")
    made = inputs.questions(tokenizer, (512,), 2)
    assert len(made) == 2 * 2 * 5
    for question in made:
        assert len(question["answers"]) == CANDIDATES
        assert len(question["prompt"]) + max(map(len, question["answers"])) <= 512
        text = tokenizer.decode(question["prompt"] + question["answers"][0])
        assert text.endswith(tokenizer.decode(question["answers"][0]))
    assert made == inputs.questions(tokenizer, (512,), 2)


def test_the_table_compares_with_stock_of_the_same_environment(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    def entry(loss: list[float], held: int, seconds: list[float], note: str = "") -> dict[str, Any]:
        score = {"loss": sum(loss) / len(loss), "by_row": loss, "bytes_per_prompt_token": held}
        times = [{"ttft_s": one, "tpot_s": one / 10, "held_bytes": held} for one in seconds]
        answers = {"passkey_512": {"right": 3, "trials": 4}}
        return {"loss": score, "retrieval": answers, "times": {"512": times}, "note": note}

    less: dict[str, Any] = {"note": ""}  # measured with --only
    one = {
        methods.STOCK: entry([3.0, 4.0], 200, [1.0, 2.0]),
        "press": entry([3.5, 4.5], 160, [2.0, 2.0], "masks"),
        "less": less,
    }
    two = {methods.STOCK: entry([3.0, 4.0], 200, [10.0, 10.0]), "code": entry([3.0, 5.0], 100, [5.0, 5.0])}
    found = {name: {"versions": {"torch": "1"}, "threads": 1, "methods": m} for name, m in (("a", one), ("b", two))}
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"environments": found}))
    monkeypatch.setattr("sys.argv", ["peers", "table", "--out", str(file)])
    assert main() == 0
    printed = capsys.readouterr().out
    assert printed.strip() == table({"environments": found}).strip()
    cells = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in printed.splitlines()
        if "|" in line
    }
    assert cells["press"] == [
        "80.0%", "4.000", "+0.500 (0.000)", "3/4", "1.50 (1.00 to 2.00)", "1.50 (1.00 to 2.00)", "80.0%",
    ]  # fmt: skip
    assert cells["less"] == ["-"] * 7
    assert cells["code"][:3] == ["50.0%", "4.000", "+0.500 (0.500)"]
    assert cells["code"][4] == "0.50 (0.50 to 0.50)"
    assert "- press: masks" in printed
    assert "busy machine" in printed


def test_every_environment_is_pinned_and_brings_no_code() -> None:
    folder = Path(environment_setup.__file__).parent / "requirements"
    for name, environment in environment_setup.ENVIRONMENTS.items():
        assert name in methods.METHODS
        for file in environment.requirements:
            lines = [line.split("#")[0].strip() for line in (folder / file).read_text().splitlines()]
            for line in filter(None, lines):
                assert "==" in line or line.startswith("-"), f"{file}: {line}"
        if environment.code:
            assert len(environment.code.commit) == 40


def test_code_is_fetched_at_its_commit_and_only_the_folders_that_are_needed(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path / "origin"), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "origin" / "wanted").mkdir(parents=True)
    (tmp_path / "origin" / "wanted" / "model.py").write_text("then")
    (tmp_path / "origin" / "other.txt").write_text("not needed")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / "origin" / "wanted" / "model.py").write_text("now")
    subprocess.run([*git, "commit", "-qam", "two"], check=True)
    code = environment_setup.Code("unreachable", commit, ("wanted",))
    environment_setup.fetch_code(code, str(tmp_path / "origin"), tmp_path / "code")
    assert (tmp_path / "code" / "wanted" / "model.py").read_text() == "then"
    assert [path.name for path in (tmp_path / "code").iterdir()] == ["wanted"]


def test_methods_are_timed_in_turns_whose_order_rotates(uniattn: Any, stock: Any, rows: list[dict[str, Any]]) -> None:
    pair = [
        protocol.Method(name, model, partial(DynamicCache, config=model.config))
        for name, model in (("a", stock), ("b", uniattn))
    ]
    said: list[str] = []
    found = protocol.times(pair, rows[0]["ids"], new_tokens=2, rounds=3, report=said.append)
    assert [text[0] for text in said] == ["a", "b", "b", "a", "a", "b"]
    for name, model in (("a", stock), ("b", uniattn)):
        with torch.no_grad():
            cache = model(torch.tensor([rows[0]["ids"]]), use_cache=True).past_key_values
        assert [one["held_bytes"] for one in found[name]] == 3 * [uniattn_pl.kv_cache_bytes(cache)]
        assert all(one[metric] > 0 for one in found[name] for metric in protocol.TIMED)
