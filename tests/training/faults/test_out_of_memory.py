"""A device without room ends a fit with the way out, and a smaller micro batch goes on to the same result."""

from __future__ import annotations

from tests.training.faults.conftest import AtPoint


def test_a_device_that_runs_out_of_memory(at: AtPoint) -> None:
    work = at("stage2")
    ended = work.fit(faults=[[0, ["step", 2, 3], ["run_out_of_memory"]]])
    assert ended.codes == [1], ended
    message = ended.message()
    assert "the memory of the device is not enough (CUDA out of memory. Tried to allocate 2.00 GiB.)" in message
    assert "Lower training.micro_batch_size" in message
    assert "Traceback" not in message
    assert work.status() == "FAILED"
    work.resumes("training.micro_batch_size=1")
    assert work.manifest().phase == "done"
