"""A calibration that was stopped goes on from the layers it has solved, and ends with the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.calibration.test_calibrate import PLANS, batches
from tests.parity import stock_llama
from transformers import PreTrainedModel

from uniattn_pl.calibration import CalibrationReport, calibrate, streaming
from uniattn_pl.calibration.record import CalibrationRecord
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan

OPTIONS: dict[str, Any] = {"head_alignment": "output_error", "ridge": "auto"}


def run(plan: LayerPlan, record: Path | None, **options: Any) -> tuple[PreTrainedModel, CalibrationReport]:
    data = batches(padded=True)
    model = converted_copy(stock_llama(), plan)
    report = calibrate(stock_llama(), model, data[:3], data[3:], record=record, **{**OPTIONS, **options})
    return model, report


def stop_after(monkeypatch: pytest.MonkeyPatch, saved: int) -> None:
    """End the process's calibration as soon as so many layers are on disk."""
    save, calls = CalibrationRecord.save, []

    def save_and_stop(record: CalibrationRecord, solved: Any) -> None:
        save(record, solved)
        calls.append(solved)
        if len(calls) == saved:
            raise KeyboardInterrupt

    monkeypatch.setattr(CalibrationRecord, "save", save_and_stop)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("rank", [None, 3])
def test_a_stopped_pass_solves_only_what_is_left(
    name: str, rank: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = PLANS[name].limit_rank(rank)
    expected, whole = run(plan, None)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path)
    solvers: list[str] = []
    make = streaming.make_solver
    monkeypatch.setattr(streaming, "make_solver", lambda *args, **kw: (solvers.append(args[0]), make(*args, **kw))[1])
    progress: list[tuple[int, int]] = []
    model, report = run(plan, tmp_path, progress=lambda done, total, _: progress.append((done, total)))
    assert len(solvers) == len(plan.compensated) - 1
    assert report == whole
    assert model.layer_plan == expected.layer_plan
    assert progress[-1][0] == progress[-1][1]
    for (key, value), other in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_the_record_of_another_pass_is_refused(tmp_path: Path) -> None:
    plan = PLANS["reuse"]
    run(plan, tmp_path)
    changed = {"initialiser": (plan, "least_squares"), "plan": (plan.limit_rank(2), None), "ridge": (plan, 0.5)}
    for name, (other, value) in changed.items():
        with pytest.raises(UserError, match=f"belongs to a calibration with another {name}; delete it"):
            run(other, tmp_path, **({} if value is None else {name: value}))
    data = batches(padded=True)
    with pytest.raises(UserError, match="belongs to a calibration with another batches"):
        calibrate(stock_llama(), converted_copy(stock_llama(), plan), data[:2], data[3:], record=tmp_path, **OPTIONS)


def test_the_record_of_another_model_is_refused_where_both_are_known(tmp_path: Path) -> None:
    plan = PLANS["reuse"]
    run(plan, tmp_path, contents="one")
    run(plan, tmp_path, contents="one")
    run(plan, tmp_path)
    with pytest.raises(UserError, match="belongs to a calibration with another model; delete it"):
        run(plan, tmp_path, contents="two")


def test_a_solved_layer_keeps_every_part(tmp_path: Path) -> None:
    run(PLANS["reuse"], tmp_path)
    record = CalibrationRecord(
        tmp_path, {"initialiser": "joint_least_squares", **OPTIONS}, PLANS["reuse"], batches(padded=True)[:3]
    )
    layer = PLANS["reuse"].compensated[0]
    solved = record.load(layer)
    assert solved is not None
    assert solved.error.layer == layer
    assert solved.weights.keys() == {"self_attn.w_c.weight", "self_attn.o_proj.weight"}
    assert solved.heads_from is not None
    changed = replace(solved, error=replace(solved.error, before=9.0))
    record.save(changed)
    again = record.load(layer)
    assert again is not None
    assert (again.error, again.heads_from) == (changed.error, solved.heads_from)
    assert record.load(0) is None
