"""Needles in long texts: a pass key in filler, a value among keys; by length of the text and depth of the needle.

Dropping or reusing attention may keep the loss and lose the needle. An answer counts twice: whether the model finds
the right one likelier than others of its form, which small models can do, and whether greedy decoding writes it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uniattn_pl.data.prompt_ids import prompt_ids
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.evaluation_results import Estimate, Result
from uniattn_pl.evaluation.likelihood import continuation_likelihoods
from uniattn_pl.families.positions import beyond_positions, positions_of

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # 0: the needle opens the text; 1: it is right before the question
CANDIDATES = 10
FILLER = (
    "The grass by the river is green in spring.",
    "A train leaves the station every hour.",
    "Most of the shops close before dinner.",
    "In winter the lake is covered with ice.",
    "The old bridge was painted again last year.",
    "Birds rest on the roof of the market hall.",
    "A letter takes three days to the coast.",
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Question:
    """A text that ends where the answer begins, and the candidates; the first is right."""

    lines: list[str]
    needle: int
    ending: str
    candidates: list[str]

    @property
    def prompt(self) -> str:
        """The whole text."""
        return "\n".join([*self.lines, self.ending])


def pass_key(lines: int, depth: float, generator: random.Random) -> Question:
    """`lines` lines of filler and one that tells a number; the other candidates are not in the text."""
    answers = generator.sample(range(10000, 100000), CANDIDATES)
    offset = generator.randrange(len(FILLER))
    text = [FILLER[(offset + index) % len(FILLER)] for index in range(lines)]
    needle = round(depth * lines)
    text.insert(needle, f"The pass key is {answers[0]}. Remember it.")
    return Question(text, needle, "What is the pass key? The pass key is", [f" {answer}" for answer in answers])


def key_value(lines: int, depth: float, generator: random.Random) -> Question:
    """`lines` + 1 keys with values, `CANDIDATES` at least; one is asked for, wrong candidates are others' values."""
    count = max(lines + 1, CANDIDATES)
    keys, values = (generator.sample(range(1000, 100000), count) for _ in range(2))
    needle = round(depth * (count - 1))
    others = generator.sample([value for index, value in enumerate(values) if index != needle], CANDIDATES - 1)
    text = [f"The value of key {key} is {value}." for key, value in zip(keys, values, strict=True)]
    candidates = [f" {value}" for value in (values[needle], *others)]
    return Question(text, needle, f"The value of key {keys[needle]} is", candidates)


KINDS: dict[str, Callable[[int, float, random.Random], Question]] = {"passkey": pass_key, "keyvalue": key_value}


def retrieval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    *,
    trials: int,
    seed: int,
    retain_rate: float | None,
    progress: Progress,
) -> list[Result]:
    """One result per kind and length: accuracy among the candidates, in all and by depth, and exact greedy answers.

    Args:
        model: converted or stock; with `retain_rate` as for `continuation_likelihoods`.
        tokenizer: of the model.
        lengths: tokens of the texts, question and answer included: as many lines as fit.
        trials: texts at each length and depth.
        seed: of everything hidden; the same for every model with the same tokenizer.
        retain_rate: fraction of the text's cache that H2O keeps; None: all.
        progress: called with texts done and in all.

    Raises:
        UserError: a length is too short for a question, or longer than the model's positions.
    """
    lengths = sorted(set(lengths))
    problem = beyond_positions("evaluation.lengths", lengths[-1], positions_of(model.config))
    if problem:
        raise UserError(problem)
    results, total = [], len(KINDS) * len(lengths) * len(DEPTHS) * trials
    done = 0
    for kind, make in KINDS.items():
        for length in lengths:
            details = []
            lines = lines_that_fit(tokenizer, make, length)
            for depth in DEPTHS:
                for trial in range(trials):
                    question = make(lines, depth, random.Random(f"{seed} {kind} {length} {depth} {trial}"))
                    scored = _ask(model, tokenizer, question, retain_rate)
                    details.append({"depth": depth, **scored})
                    done += 1
                    progress(done, total)
            results.append(Result(f"retrieval_{kind}_{length}", len(details), _figures(details), details))
    return results


def lines_that_fit(tokenizer: Any, make: Callable[[int, float, random.Random], Question], length: int) -> int:
    """How many lines make a text of at most `length` tokens, with a little room for longer numbers.

    Args:
        tokenizer: of the model.
        make: one of `KINDS`.
        length: tokens of the text, question and answer included.

    Raises:
        UserError: a question alone takes more.
    """

    def tokens(lines: int) -> int:
        question = make(lines, 0.5, random.Random(0))
        return len(prompt_ids(tokenizer, question.prompt + question.candidates[0]))

    least = tokens(0)
    if least > length:
        raise UserError(f"evaluation.lengths: a question takes {least} tokens at least, more than {length}.")
    low, high = 0, length
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokens(middle) <= 0.98 * length else (low, middle - 1)
    return low


def _ask(model: PreTrainedModel, tokenizer: Any, question: Question, retain_rate: float | None) -> dict[str, Any]:
    prompt = prompt_ids(tokenizer, question.prompt)
    answers = [prompt_ids(tokenizer, question.prompt + answer)[len(prompt) :] for answer in question.candidates]
    scores = continuation_likelihoods(model, prompt, answers, retain_rate=retain_rate)
    before = prompt_ids(tokenizer, "\n".join(question.lines[: question.needle]))
    best = max(range(len(scores)), key=lambda index: scores[index].log)
    distance = len(prompt) - len(before)
    return {"tokens": len(prompt), "distance": distance, "right": best == 0, "exact": scores[0].greedy}


def _figures(details: list[dict[str, Any]]) -> dict[str, Estimate]:
    figures = {"accuracy": _proportion(details, "right"), "exact": _proportion(details, "exact")}
    for depth in DEPTHS:
        at_depth = [row for row in details if row["depth"] == depth]
        figures[f"accuracy_depth_{round(100 * depth):03d}"] = _proportion(at_depth, "right")
    return figures


def _proportion(rows: list[dict[str, Any]], key: str) -> Estimate:
    return Estimate.proportion(sum(row[key] for row in rows) / len(rows), len(rows))
