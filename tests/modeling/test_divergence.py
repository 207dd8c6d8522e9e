"""Divergences against their formulas, in pieces, with what was kept of a teacher, and their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniattn_pl.losses.divergence import (
    DIVERGENCES,
    TopLogits,
    cosine_error,
    log_probabilities,
    relative_error,
    summed_divergence,
)

CASES = st.tuples(st.integers(1, 6), st.integers(2, 40), st.sampled_from([0.5, 1.0, 2.0]), st.floats(0.1, 8))


def drawn(tokens: int, vocabulary: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens * 1000 + vocabulary)
    student, teacher = scale * torch.randn(2, tokens, vocabulary, generator=generator)
    return student.requires_grad_(), teacher


def divergence(student: torch.Tensor, teacher: torch.Tensor | TopLogits, kind: str, temperature: float = 1.0) -> Any:
    """Of logits."""
    known = teacher if isinstance(teacher, TopLogits) else log_probabilities(teacher, temperature)
    return summed_divergence(log_probabilities(student, temperature), known, kind, temperature)


def by_formula(student: torch.Tensor, teacher: torch.Tensor, kind: str, temperature: float) -> torch.Tensor:
    p, q = ((logits.double() / temperature).softmax(-1) for logits in (teacher, student))
    m = (p + q) / 2
    terms = {
        "forward_kl": p * (p / q).log(),
        "reverse_kl": q * (q / p).log(),
        "jensen_shannon": (p * (p / m).log() + q * (q / m).log()) / 2,
    }
    return temperature**2 * terms[kind].sum()


@settings(max_examples=60, deadline=None)
@given(CASES, st.sampled_from(DIVERGENCES))
def test_divergences_are_those_of_the_formula_with_their_gradients(
    case: tuple[int, int, float, float], kind: str
) -> None:
    tokens, vocabulary, temperature, scale = case
    student, teacher = drawn(tokens, vocabulary, scale)
    found = divergence(student, teacher, kind, temperature)
    expected = by_formula(student, teacher, kind, temperature)
    assert float(found) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
    wanted = torch.autograd.grad(expected, student)[0]
    torch.testing.assert_close(torch.autograd.grad(found, student)[0], wanted, rtol=1e-4, atol=1e-5)
    assert float(found) >= -1e-5


@settings(max_examples=60, deadline=None)
@given(CASES, st.sampled_from(DIVERGENCES), st.integers(1, 50))
def test_what_is_kept_of_a_teacher_bounds_the_divergence_and_the_whole_gives_it(
    case: tuple[int, int, float, float], kind: str, k: int
) -> None:
    tokens, vocabulary, temperature, scale = case
    student, teacher = drawn(tokens, vocabulary, scale)
    full = divergence(student, teacher, kind, temperature)
    kept = divergence(student, TopLogits.of(teacher, k, temperature), kind, temperature)
    assert float(kept) <= float(full) + 1e-4 * (1 + abs(float(full)))
    whole = divergence(student, TopLogits.of(teacher, vocabulary, temperature), kind, temperature)
    torch.testing.assert_close(whole, full, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (whole, full)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_the_tail_counts_with_its_mass() -> None:
    """A student that has moved all mass of the tail onto the first token is not right, though these two agree."""
    teacher = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    student = torch.tensor([[0.7, 0.3, 1e-9, 1e-9]]).log()
    kept = divergence(student, TopLogits.of(teacher, 2), "forward_kl")
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.7, 0.3, 1e-7])
    assert float(kept) == pytest.approx(float((p * (p / q).log()).sum()), rel=0.05)


def test_the_same_distribution_costs_nothing() -> None:
    logits = torch.randn(3, 7)
    for kind in DIVERGENCES:
        assert float(divergence(logits, logits + 2.0, kind)) == pytest.approx(0, abs=1e-5)


def test_errors_of_hidden_states() -> None:
    teacher = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    student = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert float(relative_error(student, teacher)) == pytest.approx(0.25, rel=1e-5)
    assert float(cosine_error(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), teacher)) == pytest.approx(0.2 + 1.0)


def test_a_divergence_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no divergence 'kl'; there are forward_kl, reverse_kl"):
        divergence(torch.zeros(1, 2), torch.zeros(1, 2), "kl")
