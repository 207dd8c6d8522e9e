"""Which rows a limit leaves."""

from __future__ import annotations

from collections import Counter

from uniattn_pl.evaluation.subsample import choose_rows

SORTED = ["yes"] * 276 + ["no"] * 169 + ["maybe"] * 55  # as PubMedQA's official test split


def test_a_stratified_sample_keeps_the_proportions_and_is_no_prefix_of_any_answer() -> None:
    rows = choose_rows(500, 100, seed=0, answers=SORTED)
    assert Counter(SORTED[row] for row in rows) == {"yes": 55, "no": 34, "maybe": 11}
    assert rows == sorted(set(rows))
    for answer in ("yes", "no", "maybe"):
        first = SORTED.index(answer)
        of_answer = [row - first for row in rows if SORTED[row] == answer]
        assert of_answer != list(range(len(of_answer)))


def test_a_shuffled_sample_is_no_prefix_and_depends_on_the_seed_only() -> None:
    first, again, other = (choose_rows(500, 50, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first != list(range(50))
    assert len(set(first)) == 50


def test_answers_that_are_texts_are_not_stratified() -> None:
    texts = [f"answer {row}" for row in range(500)]
    assert choose_rows(500, 50, seed=3, answers=texts) == choose_rows(500, 50, seed=3)


def test_without_a_limit_below_their_number_all_rows_stay() -> None:
    assert choose_rows(3, None, seed=0) == choose_rows(3, 9, seed=0, answers=["a", "b", "b"]) == [0, 1, 2]
