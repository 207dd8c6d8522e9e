"""Hidden streams of a calibration on the device, in main memory and in files: bounded, and the same bits anywhere."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.calibration.test_calibrate import PLANS, batches
from tests.parity import stock_llama
from transformers import PreTrainedModel

from uniattn_pl.calibration import CalibrationReport, calibrate, streaming
from uniattn_pl.calibration.stream_store import TensorStore
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan.forward_memory import calibration_memory

KIB = 2**10


class WatchedStore(TensorStore):
    """Notes the most that was ever kept, in each place and in all."""

    most: Counter[str]

    def put(self, stream: str, batch: int, tensor: torch.Tensor) -> None:
        super().put(stream, batch, tensor)
        assert self.device_bytes <= self.device_limit_bytes
        assert self.held_bytes <= self.memory_limit_bytes
        in_files = sum(path.stat().st_size for path, _, _ in self._files.values())
        now = {"device": self.device_bytes, "memory": self.held_bytes, "files": in_files}
        self.most |= Counter(now) | Counter(all=sum(now.values()))


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    WatchedStore.most = Counter()
    monkeypatch.setattr(streaming, "TensorStore", WatchedStore)
    return WatchedStore.most


def fitted(name: str, device: str, **limits: int) -> tuple[PreTrainedModel, CalibrationReport]:
    original, data = stock_llama().to(device), batches(padded=True)
    model = converted_copy(original, PLANS[name])
    return model, calibrate(original, model, data[:3], data[3:], initialiser="joint_least_squares", **limits)


@pytest.mark.parametrize("name", PLANS)
def test_where_streams_are_changes_no_bit(name: str, most: Counter[str], device: str) -> None:
    files, report = fitted(name, device)
    assert most["files"]
    assert not most["device"]
    most.clear()
    spread, again = fitted(name, device, device_limit_bytes=300 * KIB, memory_limit_bytes=200 * KIB)
    assert all(most[place] for place in ("device", "memory", "files")), "each place has some"
    assert report == again
    assert all(torch.equal(a, b) for a, b in zip(files.parameters(), spread.parameters(), strict=True))


@pytest.mark.parametrize("name", PLANS)
def test_streams_are_what_the_plan_says(name: str, most: Counter[str]) -> None:
    original, data = stock_llama(), batches()
    calibrate(original, converted_copy(original, PLANS[name]), data, [], device_limit_bytes=2**30)
    sequences, length = sum(len(batch["input_ids"]) for batch in data), data[0]["input_ids"].shape[1]
    sizes = {"sequences": sequences, "batch_size": 6, "length": length, "element_bytes": 4}
    estimate = calibration_memory(PLANS[name], shape_of(original.config), initialiser="least_squares", **sizes)
    one_batch = estimate.streams // len(data)  # one leaves a layer while the next one is still in front of it
    assert estimate.streams - one_batch <= most["all"] <= estimate.streams


SIZES = st.integers(0, 40)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.none() | st.integers(1, 20)), max_size=30),
    SIZES,
    SIZES,
)
def test_a_store_returns_the_last_of_what_it_was_given(
    steps: list[tuple[str, int, int | None]], device_numbers: int, memory_numbers: int
) -> None:
    """Steps: (stream, batch, numbers of the tensor to keep; None: drop it)."""
    limits = {"memory_limit_bytes": 8 * memory_numbers, "device_limit_bytes": 8 * device_numbers}
    expected: dict[tuple[str, int], torch.Tensor] = {}
    with TensorStore(**limits) as store:
        for step, (stream, batch, size) in enumerate(steps):
            if size is None:
                store.drop(stream, batch)
                expected.pop((stream, batch), None)
            else:
                expected[stream, batch] = torch.arange(size, dtype=torch.float64) + 100 * step
                store.put(stream, batch, expected[stream, batch])
            assert store.device_bytes <= store.device_limit_bytes
            assert store.held_bytes <= store.memory_limit_bytes
        for (stream, batch), tensor in expected.items():
            assert torch.equal(store.get(stream, batch), tensor)
        for stream in "ab":
            store.drop(stream)
        assert store.device_bytes == store.held_bytes == 0
