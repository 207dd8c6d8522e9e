"""What `training.objective: dpo` cannot be asked for together with, said before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from uniattn_pl.config import load_config
from uniattn_pl.errors import UserError

DPO = ("training.objective=dpo", "data.source=embedded_pairs")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["training.stage2.enabled=false"], "training.objective: dpo is what stage 2 learns"),
        (["data.packing=true"], "data.packing: training.objective=dpo compares"),
        (["data.source=embedded"], "data.source: 'embedded' has no pairs"),
        (["data.source=self", "data.validation_source=embedded_pairs"], "data.source: 'self' has no pairs"),
        (["data.format=alpaca"], "data.format: training.objective=dpo needs rows of the format preference"),
        (["training.distillation.teacher=original"], "training.objective: dpo minimises the loss of preferences alone"),
        (["training.dpo.beta=0"], "training.dpo.beta: must be above 0"),
        (
            ["training.dpo.label_smoothing=0.1"],
            "training.dpo.label_smoothing: is the share of wrong pairs of loss_type=",
        ),
        (
            ["training.dpo={loss_type: robust, label_smoothing: 0.5}"],
            "training.dpo.label_smoothing: must be below 0.5",
        ),
        (["training.dpo.loss_type=sigmod"], "sigmoid"),
        (["training.objective=dop"], "dpo"),
    ],
)
def test_what_does_not_go_together_is_told(settings: list[str], told: str, tmp_path: Path) -> None:
    file = tmp_path / "exp.yaml"
    file.write_text("name: pairs\nmodel: {source: tiny-llama}\narchitecture: {name: uniattn}\n")
    load_config([file], [*DPO, "training.distillation.stage2.logits=1"])
    with pytest.raises(UserError) as refused:
        load_config([file], [*DPO, *settings])
    (problem,) = refused.value.problems
    assert told in problem
