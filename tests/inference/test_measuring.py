"""What one measurement does: tokens decoded, bytes counted, memory at its peak, order of rounds, bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import converted, plan_of, stock, tokens
from transformers import PreTrainedModel

from uniattn_pl.display.text_table import table_text
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.inference import bench_report, benchmark
from uniattn_pl.inference.benchmark import Measured, Setting, quartiles, run_setting, subjects_of
from uniattn_pl.inference.roofline import Machine
from uniattn_pl.inference.timing import TimedModel, Timing, measure, peak_memory
from uniattn_pl.modeling.caches.plan_cache import CacheMismatchError, kv_cache_bytes
from uniattn_pl.plan import LayerPlan, costs

MIB = 2**20
LENGTH, NEW_TOKENS = 13, 5
SETTING = Setting(LENGTH, 2, "sdpa")
UNMODIFIED = LayerPlan.unmodified(6)


def subject(architecture: str = "uniattn", *, chunked: bool = True, chunk_size: int | None = None) -> TimedModel:
    plan = plan_of("llama", architecture)
    return TimedModel(architecture, converted("llama", architecture), plan, chunked=chunked, chunk_size=chunk_size)


def recorded(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The keyword arguments of every forward from now on."""
    calls: list[dict[str, Any]] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls


def several() -> list[TimedModel]:
    plans = {name: plan_of("llama", name) for name in ("uniattn", "cla")}
    return subjects_of(stock("llama"), plans, "sdpa", chunk_size=None)


def run(subjects: list[TimedModel], *, rounds: int, told: Callable[[str], None] = lambda _: None) -> list[Measured]:
    return run_setting(subjects, SETTING, new_tokens=NEW_TOKENS, rounds=rounds, seed=0, progress=told)


@torch.no_grad()
def test_a_measurement_decodes_greedily_behind_the_prompt() -> None:
    one, ids = subject(chunk_size=6), tokens(2, LENGTH)
    expected = ids
    for _ in range(NEW_TOKENS):
        following = one.model(expected, use_cache=False).logits[:, -1:].argmax(-1)
        expected = torch.cat([expected, following], dim=1)
    calls = recorded(one.model)
    sample = measure(one, ids, NEW_TOKENS)
    assert [call["input_ids"].shape[1] for call in calls] == [6, 6, 1, *[1] * (NEW_TOKENS - 1)]
    # The last token that is found is not fed again.
    assert torch.equal(torch.cat([call["input_ids"] for call in calls], dim=1), expected[:, :-1])
    cache = calls[-1]["past_key_values"]
    assert all(call["past_key_values"] is cache for call in calls)
    assert cache.get_seq_length() == LENGTH + NEW_TOKENS - 1
    size = {"batch_size": 2, "bytes_per_element": 4}
    assert sample.kv_bytes == costs.kv_cache_bytes(one.plan, shape_of(one.model.config), length=LENGTH, **size)
    assert kv_cache_bytes(cache) > sample.kv_bytes, "the bytes are those after the prompt"


@pytest.mark.parametrize("architecture", ["uniattn", "cla", "llmdrop"])
def test_chunks_and_one_forward_find_the_same_next_token(architecture: str) -> None:
    outputs, lengths = [], []
    for chunked in (True, False):
        one = subject(architecture, chunked=chunked, chunk_size=4)
        calls = recorded(one.model)
        outputs.append(one.prefill(tokens(3, LENGTH)))
        lengths.append([call["input_ids"].shape[1] for call in calls])
    assert lengths == [[4, 4, 4, 1], [LENGTH]]
    assert [output.logits.shape[1] for output in outputs] == [1, 1]
    assert torch.equal(*(output.logits.argmax(-1) for output in outputs))
    assert len({kv_cache_bytes(output.past_key_values) for output in outputs}) == 1


class Allocating(TimedModel):
    """Instead of a prefill, writes to 64 MiB, and keeps them or not."""

    kept: torch.Tensor | None = None
    keeps: bool = True

    def prefill(self, ids: torch.Tensor) -> Any:
        block = torch.ones(64 * MIB // 4)
        if self.keeps:
            type(self).kept = block


class Releasing(Allocating):
    keeps = False


class Idle(TimedModel):
    def prefill(self, ids: torch.Tensor) -> Any:
        return None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_what_the_prefill_adds_at_its_peak() -> None:
    kinds = (Releasing, Idle, Allocating, Idle, Releasing)
    peaks = [peak_memory(kind("x", stock("llama"), UNMODIFIED, chunked=False), tokens(1, 4)) for kind in kinds]
    Allocating.kept = None
    for kind, peak in zip(kinds, peaks, strict=True):
        assert peak is not None
        assert (peak < 16 * MIB) if kind is Idle else (60 * MIB <= peak < 100 * MIB), f"{kind.__name__}: {peak / MIB}"


@pytest.mark.parametrize(
    ("family", "backend", "stocks"),
    [
        ("llama", "sdpa", {"stock": "sdpa"}),
        ("llama", "eager", {"stock": "sdpa", "stock eager": "eager"}),
        ("gemma2", "eager", {"stock": "eager"}),  # soft-capped: no sdpa to be had
    ],
)
def test_subjects_share_the_weights_and_leave_the_original_as_it_was(
    family: str, backend: str, stocks: dict[str, str]
) -> None:
    original, ids = stock(family), tokens(1, LENGTH)
    kernel, before = original.config._attn_implementation, original(ids).logits
    plans = {name: plan_of(family, name) for name in ("uniattn", "cla")}
    subjects = subjects_of(original, plans, backend, chunk_size=4)
    dropped = [f"llmdrop on the same layers as {name}" for name in plans]
    assert [one.label for one in subjects] == [*stocks, "baseline", *plans, *dropped]
    weight = original.get_input_embeddings().weight.data_ptr()
    for one in subjects:
        assert one.model.get_input_embeddings().weight.data_ptr() == weight
        assert one.model.config._attn_implementation.removeprefix("uniattn_") == stocks.get(one.label, backend)
        calls = recorded(one.model)
        output = one.prefill(ids)
        assert [call["input_ids"].shape[1] for call in calls] == ([LENGTH] if one.label in stocks else [4, 4, 4, 1])
        if one.plan.operated == ():
            torch.testing.assert_close(output.logits, before[:, -1:], rtol=0, atol=1e-4)
    assert original.config._attn_implementation == kernel
    assert torch.equal(original(ids).logits, before)


def test_the_bound_drops_the_same_layers_once() -> None:
    plans = {"dropped": UNMODIFIED.drop([2, 3], compensated=False), "reused": plan_of("llama", "uniattn")}
    assert plans["reused"].operated == plans["dropped"].operated
    both = subjects_of(stock("llama"), plans, "sdpa", chunk_size=None)
    assert [one.label for one in both] == ["stock", "baseline", "dropped", "reused"]
    alone = subjects_of(stock("llama"), {"reused": plans["reused"]}, "sdpa", chunk_size=None)
    assert [one.label for one in alone] == ["stock", "baseline", "reused", "llmdrop on the same layers"]
    assert alone[-1].plan == plans["dropped"]


def test_the_order_rotates_and_every_subject_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects, calls = several(), []
    labels = [one.label for one in subjects]

    def recording(one: TimedModel, ids: torch.Tensor, new_tokens: int) -> Timing:
        calls.append((one.label, ids, new_tokens))
        return measure(one, ids, new_tokens)

    monkeypatch.setattr(benchmark, "measure", recording)
    told: list[str] = []
    rounds = len(subjects) + 1
    measured = run(subjects, rounds=rounds, told=told.append)
    timed = calls[-rounds * len(subjects) :]
    assert [label for label, _, _ in calls[: -len(timed)]] == labels, "each is warmed once, before the first round"
    assert {new_tokens for _, _, new_tokens in timed} == {NEW_TOKENS}
    assert all(torch.equal(ids, timed[0][1]) for _, ids, _ in timed), "all continue the same prompt"
    assert timed[0][1].shape == (2, LENGTH)
    orders = [[label for label, _, _ in timed[i : i + len(labels)]] for i in range(0, len(timed), len(labels))]
    assert orders == [labels[i % len(labels) :] + labels[: i % len(labels)] for i in range(rounds)]
    assert [(entry.label, len(entry.samples)) for entry in measured] == [(label, rounds) for label in labels]
    assert len(told) == len(subjects) * (rounds + 1), "the progress that the session counts on"


def test_samples_go_to_the_subject_they_were_taken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = several()
    seconds = {one.label: 10.0**i for i, one in enumerate(subjects)}
    taken = dict.fromkeys(seconds, 0)

    def fake(one: TimedModel, ids: torch.Tensor, new_tokens: int) -> Timing:
        sample = measure(one, ids, 2)
        if new_tokens == NEW_TOKENS:
            taken[one.label] += 1
        return Timing(seconds[one.label] * taken[one.label], seconds[one.label], sample.kv_bytes)

    monkeypatch.setattr(benchmark, "measure", fake)
    for entry in run(subjects, rounds=3):
        expected = [seconds[entry.label] * number for number in (1, 2, 3)]
        assert [sample.ttft_s for sample in entry.samples] == pytest.approx(expected), "in the order of rounds"


def test_a_cache_of_other_bytes_than_the_plan_predicts_is_an_error() -> None:
    subjects = several()
    shape = shape_of(subjects[0].model.config)
    size = {"batch_size": 2, "length": LENGTH, "bytes_per_element": 4}
    held, predicted = (costs.kv_cache_bytes(p, shape, **size) for p in (plan_of("llama", "cla"), UNMODIFIED))
    liar = TimedModel("liar", converted("llama", "cla"), UNMODIFIED, chunked=True)
    match = f"liar: the cache holds {held} bytes after {LENGTH} tokens, the plan predicts {predicted}"
    with pytest.raises(CacheMismatchError, match=match):
        run([*subjects, liar], rounds=1)


def of_times(label: str, ttft: list[float], tpot: list[float]) -> Measured:
    samples = [Timing(a, b, 400) for a, b in zip(ttft, tpot, strict=True)]
    return Measured(
        label, SETTING, 400, 0.5, prefill_flops=60, decode_bytes=30, peak_memory_bytes=None, samples=samples
    )


def test_quartiles() -> None:
    assert quartiles([5, 1, 4, 2, 3]) == (2, 4)
    assert quartiles([1, 2]) == (1.25, 1.75)
    assert quartiles([7]) == (7, 7)
    entry = of_times("a", [5, 1, 4, 2, 30], [1, 1, 1, 1, 1])
    assert entry.median("ttft_s") == 4
    assert entry.quartiles("ttft_s") == (2, 5)
    assert entry.quartiles("tpot_s") == (1, 1)


def test_ratios_are_paired_by_round() -> None:
    own, reference = of_times("a", [2, 30, 8], [1, 1, 1]), of_times("stock", [1, 10, 2], [2, 4, 5])
    assert own.ratios("ttft_s", reference) == [2, 3, 4]
    assert own.ratios("tpot_s", reference) == [0.5, 0.25, 0.2]
    with pytest.raises(ValueError, match="shorter"):
        own.ratios("ttft_s", of_times("stock", [1], [1]))


def test_a_row_has_the_paired_ratios_and_the_shares_of_the_peaks() -> None:
    # Ratios 2, 3, 4: 3 at the median, while the medians' own ratio would be 8 / 2 = 4.
    entries = [of_times("stock", [1, 10, 2], [1, 1, 1]), of_times("own", [2, 30, 8], [0.5, 0.5, 0.5])]
    rows = bench_report.rows(entries, Machine(flops_per_s=15, bytes_per_s=100))
    row = dict(zip(bench_report.columns(entries), rows[1], strict=True))
    assert [cells[0] for cells in rows] == ["stock", "own"]
    assert rows[1][2:6] == ("8 (5-19)", "3.00 (2.50-3.50)", "0.5 (0.5-0.5)", "0.50 (0.50-0.50)")
    assert row["of peak FLOP/s"] == "50%", "60 FLOPs at 15 per second take 4 of the 8 seconds"
    assert row["of bandwidth"] == "60%", "30 bytes at 100 per second take 0.3 of the 0.5 seconds"
    assert (row["peak memory"], row["KV cache"], row["kept"]) == ("-", "400 B", "50.0%")


def test_times_below_a_second_are_in_milliseconds() -> None:
    entries = [of_times("stock", [0.01, 0.03, 0.02], [0.5] * 3), of_times("own", [0.02] * 3, [0.004] * 3)]
    assert bench_report.columns(entries)[2:6] == ("TTFT ms", "/ stock", "TPOT ms", "/ stock")
    assert bench_report.rows(entries, Machine(1, 1))[1][2] == "20 (20-20)"
    assert bench_report.columns([*entries, of_times("slow", [2] * 3, [0.1] * 3)])[2:5] == (
        "TTFT s",
        "/ stock",
        "TPOT ms",
    )


def test_the_short_table_of_a_bench_fits_80_columns() -> None:
    entries = [of_times(label, [0.012345, 0.03, 0.02], [0.0567] * 3) for label in ("stock", "baseline", "a" * 26)]
    headings, rows = bench_report.short_table(entries)
    lines = table_text("Batch 1", headings, rows, width=80)
    assert max(map(len, lines)) <= 80
    assert rows[2][2:6] == ("20", "1.00", "56.7", "1.00")


def test_a_bench_is_concluded_in_a_sentence_that_claims_no_difference_within_the_spread() -> None:
    base = of_times("baseline", [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    own = of_times("own", [0.9, 1.1, 1.0], [0.8, 0.8, 0.8])
    assert bench_report.conclusion([of_times("stock", [1] * 3, [1] * 3), base, own]) == (
        f"own beside the unmodified model (baseline) at {SETTING.length:,} tokens: first token no difference that the "
        "rounds agree on, further tokens 20% sooner; it keeps 50.0% of the KV cache."
    )
    assert bench_report.conclusion([base]) is None


def test_a_bound_is_the_slower_of_computing_and_reading() -> None:
    machine = Machine(flops_per_s=500.0, bytes_per_s=7.0)
    assert machine.bound_s(flops=1000) == 2
    assert machine.bound_s(read_bytes=70) == 10
    assert machine.bound_s(flops=1000, read_bytes=70) == 10
    assert machine.bound_s(flops=10_000, read_bytes=70) == 20
