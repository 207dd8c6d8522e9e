"""Learning from a teacher, through the module: against plain formulas, and however a step is divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainers import fit
from tests.training.test_module import SIZES, batches, converted, llama
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from uniattn_pl.config.sections.distillation_section import DistillationConfig, TermWeights
from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.losses import row_logits
from uniattn_pl.losses.divergence import DIVERGENCES
from uniattn_pl.modeling.conversion.convert import apply_architecture
from uniattn_pl.plan.roles import MAP
from uniattn_pl.plan.teacher_memory import teacher_bytes
from uniattn_pl.training.callbacks.stage_freezing import freeze_for_stage
from uniattn_pl.training.lightning_module import PostTrainingModule
from uniattn_pl.training.objectives import teacher_cache
from uniattn_pl.training.objectives.distillation_objective import DistillationObjective
from uniattn_pl.training.objectives.source_maps import trained_for_readers
from uniattn_pl.training.objectives.teacher import Teacher, share_frozen
from uniattn_pl.training.objectives.teacher_cache import TeacherCache

OPTIONS = StageConfig(learning_rate=0.05, schedule="constant", warmup_ratio=0.0)
BOTH = TermWeights(labels=0.5, logits=2.0)


def teacher() -> PreTrainedModel:
    torch.manual_seed(3)
    model = type(llama())(llama().config)
    for parameter in model.parameters():
        parameter.data *= 4  # sure of what comes next, as the student is not
    return model


def module(
    options: DistillationConfig,
    weights: TermWeights = BOTH,
    *,
    stage: int = 2,
    model: PreTrainedModel | None = None,
    of: PreTrainedModel | None = None,
    cache: TeacherCache | None = None,
) -> PostTrainingModule:
    objective = DistillationObjective(options, weights, Teacher(lambda: of or teacher()), cache)
    return PostTrainingModule(
        model or converted(), stage=stage, options=OPTIONS, objective=objective, max_grad_norm=None
    )


def trained(found: PostTrainingModule) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in found.hosted.named_parameters()}


def assert_same(found: PostTrainingModule, expected: PostTrainingModule, tolerance: float = 1e-6) -> None:
    ours, theirs = trained(found), trained(expected)
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def plain_loss(
    student: PreTrainedModel, of: PreTrainedModel, data: list[dict[str, Tensor]], options: DistillationConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective by its formula on whole float64 logits, and the terms' means."""
    labels_sum = divergence = torch.zeros((), dtype=torch.float64)
    responses = distilled = 0
    for batch in data:
        present = batch["attention_mask"].bool()
        with torch.no_grad():
            theirs = of(**batch, use_cache=False).logits[:, :-1].double() / options.temperature
        logits = student(**batch, use_cache=False).logits[:, :-1].double()
        labels = batch["labels"][:, 1:]
        wanted = labels != -100 if options.tokens == "response" else present[:, 1:]
        p, q = theirs.softmax(-1), (logits / options.temperature).softmax(-1)
        m = (p + q) / 2
        by_token = {
            "forward_kl": (p * (p / q).log()).sum(-1),
            "reverse_kl": (q * (q / p).log()).sum(-1),
            "jensen_shannon": ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2,
        }[options.divergence]
        divergence = divergence + options.temperature**2 * by_token[wanted].sum()
        labels_sum = labels_sum + nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        responses, distilled = responses + int((labels != -100).sum()), distilled + int(wanted.sum())
    total = (BOTH.labels * labels_sum + BOTH.logits * divergence) / distilled
    return total, {"label_loss": labels_sum / responses, "logit_divergence": divergence / distilled}


@pytest.mark.parametrize("tokens", ["all", "response"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_step_is_the_formula_on_whole_logits(
    divergence: str, tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_logits, "LOSS_CHUNK", 5)
    options = DistillationConfig("x", divergence=divergence, temperature=2.0, tokens=tokens)
    found, data = module(options), batches(3)
    fit(found, data, tmp_path, steps=1, accumulate_grad_batches=3)

    reference = converted()
    total, terms = plain_loss(reference, teacher(), data, options)
    total.backward()
    torch.optim.AdamW(reference.parameters(), lr=0.05, weight_decay=0.0).step()
    assert float(found.step_loss) == pytest.approx(float(total), rel=1e-5)  # type: ignore[arg-type]
    assert found.step_terms.keys() == terms.keys()
    for name, value in terms.items():
        assert float(found.step_terms[name]) == pytest.approx(float(value), rel=1e-5), name
    for (name, ours), theirs in zip(found.hosted.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_family_that_caps_its_logits_is_distilled_with_its_caps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_logits, "LOSS_CHUNK", 4)
    config = Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5, attn_implementation="eager")
    torch.manual_seed(0)
    student, of = Gemma2ForCausalLM(config), Gemma2ForCausalLM(config)
    options, data = DistillationConfig("x"), batches(1)
    total, _ = plain_loss(student, of, data, options)
    found = module(options, model=student, of=of)
    fit(found, data, tmp_path, steps=1)
    assert float(found.step_loss) == pytest.approx(float(total), rel=1e-5)  # type: ignore[arg-type]


def test_there_are_never_logits_of_more_rows_than_a_piece_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_logits, "LOSS_CHUNK", 5)
    student, of = converted(), teacher()
    heads = {model.get_output_embeddings() for model in (student, of)}
    rows: list[int] = []
    forward = nn.Linear.forward

    def watched(self: nn.Linear, states: Tensor) -> Tensor:
        if self in heads:
            rows.append(states.shape[:-1].numel())
        return forward(self, states)

    monkeypatch.setattr(nn.Linear, "forward", watched)
    options = DistillationConfig("x", tokens="response")
    fit(module(options, model=student, of=of), batches(1), tmp_path, steps=1)
    scored = int((batches(1)[0]["labels"][:, 1:] != -100).sum())
    own = [n for n in rows if n]
    assert max(own) <= 5
    assert sum(own) == 2 * scored  # of the student and of the teacher


def test_top_k_of_the_whole_vocabulary_is_the_full_teacher(tmp_path: Path) -> None:
    full, top = module(DistillationConfig("x")), module(DistillationConfig("x", top_k=SIZES["vocab_size"]))
    for one, name in ((full, "full"), (top, "top")):
        fit(one, batches(2), tmp_path / name, steps=2)
    assert_same(top, full, 1e-5)


@pytest.mark.parametrize("weights", [TermWeights(1, 1, 1), TermWeights(0, 0, 1), TermWeights(0, 1, 0.5)])
@pytest.mark.parametrize("error", ["relative", "cosine"])
def test_micro_batches_and_resumption_change_nothing(error: str, weights: TermWeights, tmp_path: Path) -> None:
    options = DistillationConfig("x", hidden_layers=[1, 3], hidden_error=error)
    data = batches(2)
    # together in one micro batch, or in two: hidden errors are scaled by the step before
    together = [{key: torch.cat([batch[key] for batch in data]) for key in data[0]}]
    whole, parts = module(options, weights), module(options, weights)
    fit(whole, together * 3, tmp_path / "whole", steps=3)
    fit(parts, data * 3, tmp_path / "parts", steps=3, accumulate_grad_batches=2)
    assert_same(parts, whole, 1e-4)
    assert whole.step_terms["hidden_error"] > 0

    first, second = module(options, weights), module(options, weights)
    trainer = fit(first, together * 3, tmp_path / "first", steps=2, enable_checkpointing=True)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    fit(second, together * 3, tmp_path / "second", steps=3, ckpt_path=tmp_path / "two.ckpt")
    assert second.objective.state() == whole.objective.state()
    assert_same(second, whole, 0)


def test_hidden_states_are_compared_at_the_size_of_the_other_terms(tmp_path: Path) -> None:
    found = module(DistillationConfig("x", hidden_layers=[2]), TermWeights(1, 1, 0.5))
    fit(found, batches(1) * 2, tmp_path, steps=2)
    # L counts labels by distilled token, their own mean by response token
    labels = [batch["labels"][:, 1:] for batch in batches(1)]
    share = sum(int((one != -100).sum()) for one in labels) / int(batches(1)[0]["attention_mask"][:, 1:].sum())
    terms = found.step_terms
    others = float(share * terms["label_loss"] + terms["logit_divergence"])
    scale = found.objective.state()["hidden_scale"]
    assert scale * float(terms["hidden_error"]) == pytest.approx(others, rel=1e-4)
    assert float(found.step_loss) == pytest.approx(1.5 * others, rel=1e-4)  # type: ignore[arg-type]


def test_in_stage_1_the_teacher_is_the_students_own_weights_and_learns_the_same(tmp_path: Path) -> None:
    original = llama()
    student = converted()
    student.load_state_dict(original.state_dict(), strict=False)
    for layer in student.model.layers:
        if getattr(layer.self_attn, "w_c", None) is not None:
            nn.init.normal_(layer.self_attn.w_c.weight, std=0.1)
    state = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    options = DistillationConfig("original", hidden_layers=[3])
    shared = module(options, TermWeights(1, 1, 1), stage=1, model=student, of=original)
    seen: dict[str, Any] = {}
    ran: set[int] = set()
    for index, layer in enumerate(original.model.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.add(index))
    release = shared.objective.end
    shared.objective.end = lambda: (seen.update(model=shared.objective.teacher._model), release())  # type: ignore
    fit(shared, batches(2), tmp_path / "shared", steps=2)
    plan = student.layer_plan
    lowest = min(*plan.operated, *(row.source for row in plan.rows if row.source is not None))
    assert ran == set(range(lowest, len(plan.rows)))  # below it both compute the same, so the student for both

    class Apart(Teacher):
        def beside(self, _: nn.Module) -> nn.Module:
            self._model = self._model or self._build().requires_grad_(False).eval()
            return self._model

    other = converted()
    other.load_state_dict(state)
    apart = module(options, TermWeights(1, 1, 1), stage=1, model=other)
    apart.objective.teacher = Apart(llama)  # type: ignore[attr-defined]
    fit(apart, batches(2), tmp_path / "apart", steps=2)
    assert_same(shared, apart, 0)


def cache(folder: Path, k: int = 8) -> TeacherCache:
    return TeacherCache(folder, top_k=k, temperature=1.0, limit_bytes=2**30)


def test_a_cached_teacher_is_the_live_one_and_does_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "LOSS_CHUNK", 3)
    for tokens in ("all", "response"):
        options = DistillationConfig("x", top_k=8, tokens=tokens)
        live = module(options)
        fit(live, batches(2), tmp_path / tokens / "live", steps=2)
        for time in ("first", "second"):
            cached = module(options, cache=cache(tmp_path / "kept"))
            if (time, tokens) != ("first", "all"):
                cached.objective.teacher = Teacher(lambda: pytest.fail("the teacher was asked again"))  # type: ignore
            fit(cached, batches(2), tmp_path / tokens / time, steps=2)
            assert_same(cached, live, 1e-4)


def test_a_damaged_file_is_made_again_and_the_folder_stays_within_its_limit(tmp_path: Path) -> None:
    options, kept = DistillationConfig("x", top_k=8), tmp_path / "kept"
    first = module(options, cache=cache(kept))
    fit(first, batches(2), tmp_path / "1", steps=2)
    files = sorted(kept.rglob("*.safetensors"))
    assert len(files) == 4
    content = files[0].read_bytes()
    files[0].write_bytes(content[: len(content) // 2])
    second = module(options, cache=cache(kept))
    with pytest.warns(UserWarning, match="damaged"):
        fit(second, batches(2), tmp_path / "2", steps=2)
    assert files[0].read_bytes() == content
    assert_same(second, first, 0)

    small = TeacherCache(tmp_path / "small", top_k=8, temperature=1.0, limit_bytes=1)
    third = module(options, cache=small)
    fit(third, batches(2), tmp_path / "3", steps=2)
    assert len(list((tmp_path / "small").rglob("*.safetensors"))) == 1
    assert_same(third, first, 0)


@pytest.mark.parametrize(
    ("name", "options"),
    [("uniattn", {"superblock_size": 2, "num_superblocks": 2}), ("llmdrop", {"layers": [1, 2], "compensation": True})],
)
@pytest.mark.parametrize("trained", ["all", "W_c", "W_c and sources"])
def test_the_teachers_own_memory_is_what_the_plan_says(name: str, options: dict[str, Any], trained: str) -> None:
    original, student = llama(), apply_architecture(llama(), name, **options)
    plan = student.layer_plan
    for row in plan.rows:  # as a joint calibration does
        attention = student.model.layers[row.index].self_attn
        if row.compensated and hasattr(attention, "o_proj"):
            attention.o_proj.weight.data += 1
    whole, with_sources = trained == "all", trained == "W_c and sources"
    freeze_for_stage(student, 2 if whole else 1, trained_for_readers(student) if with_sources else ())
    share_frozen(student, original)
    held = {id(p) for p in student.parameters()}
    own = sum(p.numel() for p in original.parameters() if id(p) not in held)
    sizes: dict[str, Any] = {"whole": whole, "refitted": True, "weight_bytes": 4}
    sizes["trained_sources"] = plan.sources(MAP) if with_sources else ()
    norms = 0 if whole else SIZES["hidden_size"] * sum(not row.reads_stream for row in plan.rows)
    assert 4 * (own + norms) == teacher_bytes(plan, shape_of(original.config), **sizes)
