"""The description of an experiment on MLflow's pages: which fit is the best at each budget of cache."""

from __future__ import annotations

from mlflow.entities import Dataset, DatasetInput, InputTag
from tests.reporting.tracked import CLA, PLAIN, UNIATTN, Tracked

LOSS = "final/response_loss"


def description(tracked: Tracked) -> str | None:
    tags: dict[str, str] = tracked.client.get_experiment(tracked.id).tags
    return tags.get("mlflow.note.content")


def test_the_first_screen_says_which_fit_is_the_best_at_each_budget(tracked: Tracked) -> None:
    tracked.config("")
    plain = tracked.fit("Post|Train", "baseline", PLAIN, 1.0, {LOSS: 2.5})
    uniattn = tracked.fit("UniAttn", "uniattn", UNIATTN, 0.8125, {LOSS: 2.75})
    tracked.fit("beaten", "cla", CLA, 0.8125, {LOSS: 2.9})
    tracked.fit("worse at more", "cla", CLA, 0.9, {LOSS: 2.8})
    tracked.fit("dead", "llmdrop", "plan-dropped", 0.5, {LOSS: 2.0}, status="FAILED")
    tracked.fit("other rows", "cla", CLA, 0.5, {LOSS: 9.0}, data="rows.jsonl")
    tracked.config("architecture: {name: uniattn}", name="UniAttn")
    assert tracked.report() == 0
    said = description(tracked)
    assert said is not None
    ours, others = said.split("\n\n**", 1)
    assert ours.splitlines()[0] == (
        "**Best loss by KV cache**: 100% Post\\|Train 2.500 · 81% UniAttn 2.750 (tiny-llama on embedded, 4 fits)"
    )
    assert ours.splitlines()[2:] == [
        "| KV cache | fit | architecture | held-out loss |",
        "|---|---|---|---|",
        f"| 100.0% | [Post\\|Train](#/experiments/{tracked.id}/runs/{plain}) | baseline | 2.500 |",
        f"| 81.2% | [UniAttn](#/experiments/{tracked.id}/runs/{uniattn}) | uniattn | 2.750 |",
    ]
    assert "other rows" in others
    context = InputTag("mlflow.data.context", "validation")
    held_out = DatasetInput(Dataset("rows", "c5f4e809de83", "local", "{}"), [context])
    longer = tracked.fit("other held-out rows", "cla", CLA, 0.6, {LOSS: 0.1})
    tracked.client.log_inputs(longer, datasets=[held_out])
    assert tracked.report() == 0
    parts = (description(tracked) or "").split("\n\n**")
    assert sum("Post\\|Train" in part for part in parts) == 1, "not beaten by a loss on other rows"
    assert any("held-out rows c5f4e809de83, 1 fit)" in part for part in parts)
    better = tracked.fit("better", "uniattn", UNIATTN, 0.75, {LOSS: 2.4})
    assert tracked.report() == 0
    assert f"| 75.0% | [better](#/experiments/{tracked.id}/runs/{better}) | uniattn | 2.400 |" in (
        description(tracked) or ""
    )
    assert "Post" not in (description(tracked) or ""), "beaten in both"


def test_a_description_of_somebody_else_stays(tracked: Tracked) -> None:
    tracked.client.set_experiment_tag(tracked.id, "mlflow.note.content", "mine")
    tracked.fit("UniAttn", "uniattn", UNIATTN, 0.8125, {LOSS: 2.75})
    tracked.config("architecture: {name: uniattn}", name="UniAttn")
    assert tracked.report() == 0
    assert description(tracked) == "mine"
