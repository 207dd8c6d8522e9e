"""The loss of a mixture's routers: the family's own, on rows alone, however a step is cut into pieces and ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import SIZES, SPECIAL, UNMODIFIED, stock, tokens, with_random_compensations
from tests.trainers import fit
from tests.training.test_callbacks import Recorder
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.data import EncodedRows, PackCollator, PackedRows, ScoredSpans
from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import family_module
from uniattn_pl.losses import row_logits
from uniattn_pl.losses.router_loss import adds_router_loss, router_logits_of, router_loss
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.modeling.loading.pretrained import load_tokenizer
from uniattn_pl.resilience.manifest import key_of
from uniattn_pl.training.callbacks.step_metrics import StepMetrics
from uniattn_pl.training.lightning_module import TOKENS_PER_GRADIENT_UNIT, PostTrainingModule
from uniattn_pl.training.objectives.objective import LabelObjective

ROOT = Path(__file__).parents[2]
PLAN = UNMODIFIED.reuse([2, 3], 1, compensated=True).drop([5], compensated=True)
FAMILIES = ["mixtral", "qwen3_moe"]  # the second has a dense layer, which has no router
COEFFICIENT = 0.5  # large, so that what is lost of it shows
OPTIONS = StageConfig(learning_rate=0.0, schedule="constant", warmup_ratio=0.0)


def converted(family: str) -> PreTrainedModel:
    model = with_random_compensations(apply_plan(stock(family), PLAN))
    model.config.router_aux_loss_coef = model.router_aux_loss_coef = COEFFICIENT  # type: ignore[assignment]
    return model


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    """Right-padded micro batches whose numbers of tokens and of response tokens differ."""
    made = []
    for number, ids in enumerate(tokens(2 * count, 10).split(2)):
        mask = torch.ones_like(ids)
        mask[1, 5 + number :] = 0
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, : 2 + number] = -100
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


class Module(PostTrainingModule):
    """Keeps the gradients of its steps."""

    gradients: dict[str, torch.Tensor]

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        self.gradients = {name: p.grad.clone() for name, p in self.hosted.named_parameters() if p.grad is not None}


def trained(model: PreTrainedModel, data: list[dict[str, torch.Tensor]], folder: Path, **options: Any) -> Module:
    module = Module(model, stage=options.pop("stage", 2), options=OPTIONS, **{"router_loss": True, **options})
    fit(module, data, folder, steps=1, accumulate_grad_batches=len(data))
    return module


def assert_gradients(module: Module, reference: PreTrainedModel) -> None:
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert module.gradients.keys() <= expected.keys()
    for name, gradient in module.gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("way", ["whole", "in pieces", "checkpointed", "stage 1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_models_own_loss_with_that_of_its_routers(
    family: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_logits, "LOSS_CHUNK", 3)
    (data,), reference, model = batches(1), converted(family), converted(family)
    if way == "checkpointed":
        model.activation_checkpointing_enable({"use_reentrant": False})
    output = reference(**data, output_router_logits=True, use_cache=False)
    output.loss.backward()
    stage = 1 if way == "stage 1" else 2
    module = trained(model, [data], tmp_path, objective=LabelObjective(chunked=way == "in pieces"), stage=stage)
    assert module.step_loss is not None
    assert module.step_router_loss is not None
    torch.testing.assert_close(module.step_router_loss, output.aux_loss.detach())
    torch.testing.assert_close(module.step_loss + COEFFICIENT * module.step_router_loss, output.loss.detach())
    assert_gradients(module, reference)
    assert len(module.gradients) == (3 if stage == 1 else len(list(reference.parameters())))


def test_of_several_micro_batches_every_response_token_counts_alike(tmp_path: Path) -> None:
    data, reference = batches(3), converted("mixtral")
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in data]
    assert len(set(counts)) == 3
    for batch, count in zip(data, counts, strict=True):
        loss = reference(**batch, output_router_logits=True, use_cache=False).loss
        (loss * count / sum(counts)).backward()
    assert_gradients(trained(converted("mixtral"), data, tmp_path), reference)


def test_packed_rows_are_counted_without_the_padding_behind_them() -> None:
    lengths = (9, 7, 5, 8)
    ids = tokens(1, sum(lengths))[0]
    spans = ScoredSpans.behind(torch.zeros(4, dtype=torch.long), torch.tensor(lengths))
    rows = EncodedRows(ids.to(torch.int32), torch.tensor(lengths), spans)
    packs = PackedRows(rows, 17, seed=0)
    batch = PackCollator(pad_id=0)([packs[index] for index in range(len(packs))])
    assert batch["row_mask"].sum() == sum(lengths) < batch["row_mask"].numel()
    model: Any = converted("mixtral")
    with torch.no_grad(), router_logits_of(model, wanted=True) as logits:
        model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    alone = [model(row[None], output_router_logits=True).router_logits for row in ids.split(list(lengths))]
    together = tuple(torch.cat(layer) for layer in zip(*alone, strict=True))
    expected = family_module(model.model.layers[0].self_attn).load_balancing_loss_func(together, 5, 2)
    torch.testing.assert_close(router_loss(model, logits, batch), expected)
    unmasked = {name: value for name, value in batch.items() if name != "row_mask"}
    assert not torch.isclose(router_loss(model, logits, unmasked), expected)


@pytest.mark.parametrize(
    ("asked", "in_config", "added"),
    [(None, False, False), (None, True, True), (False, True, False), (True, False, True)],
)
def test_without_being_asked_it_is_added_where_the_config_has_it(
    asked: bool | None, in_config: bool, added: bool, tmp_path: Path
) -> None:
    (data,), reference, model = batches(1), converted("mixtral"), converted("mixtral")
    model.config.output_router_logits = in_config
    module = trained(model, [data], tmp_path, router_loss=asked)
    reference(**data, output_router_logits=added, use_cache=False).loss.backward()
    assert_gradients(module, reference)
    assert (module.step_router_loss is not None) == added
    assert model.config.output_router_logits == in_config


def test_it_is_logged_by_itself(tmp_path: Path) -> None:
    recorder = Recorder()
    module = PostTrainingModule(converted("mixtral"), stage=2, options=OPTIONS, router_loss=True)
    fit(module, batches(2), tmp_path, steps=2, callbacks=[StepMetrics("stage2/")], logger=recorder)
    logged = {key: value for _, key, value in recorder.points}
    assert module.step_router_loss is not None
    assert logged["stage2/router_loss"] == pytest.approx(float(module.step_router_loss))
    assert logged["stage2/loss"] == pytest.approx(float(module.step_loss))  # type: ignore[arg-type]
    # two of five experts for every token: 2 where they are chosen evenly
    assert 1.9 < logged["stage2/router_loss"] < 5
    assert TOKENS_PER_GRADIENT_UNIT > 1


def test_a_family_without_one_is_told_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(ROOT / "experiments/quickstart.yaml"), "--dry-run"]
    assert main(["fit", *words, "model.source=tiny-llama", "architecture=baseline", "training.router_loss=true"]) == 2
    assert "training.router_loss is true, but a model of type 'llama' has no such loss" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such loss"):
        adds_router_loss(stock("mimo_v2_flash"), True)  # its code has none
    assert not adds_router_loss(stock("llama"), None)


def test_runs_of_former_versions_keep_their_keys() -> None:
    plain = plain_config(load_config([], []))
    former = {**plain, "training": {k: v for k, v in plain["training"].items() if k != "router_loss"}}
    assert key_of(plain) == key_of(former)
    assert key_of(plain_config(load_config([], ["training.router_loss=true"]))) != key_of(former)


def experts_folder(folder: Path) -> None:
    """A Mixtral of random weights with a real tokenizer."""
    tokenizer = load_tokenizer("tiny-llama")
    sizes = SIZES | SPECIAL["mixtral"] | {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**sizes, router_aux_loss_coef=COEFFICIENT)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_experts_have_no_one_projection_to_refine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no runs/quickstart
    experts_folder(tmp_path)
    words = [
        "--config",
        str(ROOT / "experiments/quickstart.yaml"),
        "--dry-run",
        f"model.source={tmp_path}",
        "data.max_length=512",
    ]
    words.append("architecture={name: llmdrop, num_dropped: 1, compensation: true}")
    refine = ["calibration.refine.steps=2", "calibration.refine.feed_forward=true"]
    assert main(["fit", *words, *refine]) == 2
    assert "no projections to the hidden size" in capsys.readouterr().err
    assert main(["fit", *words, refine[0]]) == 0
