"""The embedded data set: generated clinical vignettes with answers that can be checked.

Nothing is downloaded: rows are composed from the tables in `embedded_facts.py`. Row `i` is the same on every
machine and under every Python version, because only `random.Random(int).random()` is used, whose sequence
Python guarantees. No two rows have the same input, so a training row is never also a validation row.

Four kinds take turns: which of four diagnoses fits a vignette, which of three drugs a patient reacted to, which
of two drugs a history rules out, and whether a laboratory value lies outside its reference range. The output
begins with the answer, then quotes the finding it rests on. The choices of a row begin with different letters,
hence with different first tokens, so that an answer can be read off the logits of one position.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from uniattn_pl.data.embedded_facts import ALLERGENS, CAUTIONS, COMPLAINTS, CONDITIONS, LAB_TESTS, REACTIONS
from uniattn_pl.data.rows import Row

EMBEDDED_ROWS = 10_000
EMBEDDED_TRAIN_ROWS = 2_000
_SEED = 20_240_817
_T = TypeVar("_T")

_NAMES = {
    "woman": (
        "Amara", "Beatriz", "Chen", "Dalia", "Elena", "Fatima", "Greta", "Hana", "Ingrid", "Joana", "Keiko", "Leila",
        "Mei", "Nadia", "Olga", "Priya", "Rosa", "Sofia", "Tamar", "Yara", "Zofia", "Anouk", "Bridget", "Carmen",
    ),
    "man": (
        "Ahmed", "Bruno", "Carlos", "David", "Emeka", "Felix", "Gustav", "Hugo", "Ivan", "Jonas", "Kofi", "Luca",
        "Mateo", "Nikhil", "Oscar", "Pavel", "Rafael", "Samir", "Tomas", "Viktor", "Wei", "Yusuf", "Anders", "Benoit",
    ),
}  # fmt: skip
_PLACES = (
    "in the emergency department", "at the clinic", "on the ward round", "at the family practice",
    "in the outpatient department", "at the walk-in centre", "during a home visit", "at the day hospital",
)  # fmt: skip
_DIAGNOSIS_TASKS = (
    "Choose the diagnosis from the options that best fits the patient.",
    "Which of the listed diagnoses explains these findings? Answer first, then give the reason.",
    "Name the most likely diagnosis among the options and say why.",
)
_DRUG_TASKS = (
    "Which of the listed drugs should be avoided in this patient? Answer first, then give the reason.",
    "Name the drug among the options that this patient must not take and say why.",
    "Choose the drug that must not be given to this patient.",
)
_LAB_TASKS = (
    "Is the value outside its reference range? Answer Yes or No, then give the reason.",
    "Say Yes if the result lies outside the reference range, otherwise No, and explain.",
    "Does this result fall outside the given reference range? Answer Yes or No first.",
)


def embedded_rows(count: int = EMBEDDED_ROWS) -> list[Row]:
    """Return the first `count` rows of the embedded data set; a longer list begins with the shorter one."""
    rng = random.Random(_SEED)
    writers = (_diagnosis_row, _allergy_row, _diagnosis_row, _caution_row, _lab_row)
    rows: list[Row] = []
    inputs: set[str] = set()
    while len(rows) < count:
        row = writers[len(rows) % len(writers)](rng)
        if row.input not in inputs:
            inputs.add(row.input)
            rows.append(row)
    return rows


def _diagnosis_row(rng: random.Random) -> Row:
    condition = _pick(rng, CONDITIONS)
    sign = _pick(rng, condition.signs)
    findings = _shuffled(rng, [sign, *_shuffled(rng, condition.others)[:2]])
    wrong = [other.name for other in _shuffled(rng, CONDITIONS) if other.system != condition.system][:3]
    sentence = _pick(rng, ("has {}, {} and {}.", "reports or shows {}, {} and {}.", "is found to have {}, {} and {}."))
    return _choice_row(
        rng,
        task=_pick(rng, _DIAGNOSIS_TASKS),
        note=f"{_patient(rng, condition.ages)} {sentence.format(*findings)}",
        answer=condition.name,
        wrong=wrong,
        rationale=f"The finding that points to it is {sign}.",
    )


def _allergy_row(rng: random.Random) -> Row:
    drug = _pick(rng, ALLERGENS)
    wrong = [other for other in _shuffled(rng, ALLERGENS) if other != drug][:2]
    reaction, complaint = _pick(rng, REACTIONS), _pick(rng, COMPLAINTS)
    sentence = _pick(
        rng,
        (
            f"had {reaction} after taking {drug} and now has {complaint}.",
            f"comes with {complaint}; {drug} once caused {reaction}.",
            f"comes with {complaint} and remembers {reaction} after {drug}.",
        ),
    )
    return _choice_row(
        rng,
        task=_pick(rng, _DRUG_TASKS),
        note=f"{_patient(rng, (18, 88))} {sentence}",
        answer=drug,
        wrong=wrong,
        rationale=f"The note reports {reaction} from {drug}.",
    )


def _caution_row(rng: random.Random) -> Row:
    caution = _pick(rng, CAUTIONS)
    history = _pick(rng, caution.histories)
    sentence = _pick(
        rng,
        (
            f"has a record of {history} and now needs a drug for {caution.purpose}.",
            f"needs treatment for {caution.purpose}; the history mentions {history}.",
            f"asks for help with {caution.purpose}, and the chart lists {history}.",
        ),
    )
    return _choice_row(
        rng,
        task=_pick(rng, _DRUG_TASKS),
        note=f"{_patient(rng, caution.ages, caution.sex)} {sentence}",
        answer=caution.avoid,
        wrong=[caution.prefer],
        rationale=f"The note mentions {history}: {caution.why}.",
    )


def _choice_row(rng: random.Random, *, task: str, note: str, answer: str, wrong: list[str], rationale: str) -> Row:
    """Return a row whose choices stand on lines of their own: there they have the tokens the response begins with."""
    choices = tuple(_shuffled(rng, [answer, *wrong]))
    return Row(task, "\n".join((note, "Options:", *choices)), f"{answer}. {rationale}", answer, choices)


def _lab_row(rng: random.Random) -> Row:
    test = _pick(rng, LAB_TESTS)
    side = _pick(rng, ("below", "above", "within", "within"))  # half of the answers are Yes
    lowest, highest = {
        "below": (test.lowest, test.low - test.step),
        "above": (test.high + test.step, test.highest),
        "within": (test.low, test.high),
    }[side]
    steps = round((highest - lowest) / test.step)
    value = lowest + test.step * int(rng.random() * (steps + 1))
    digits = {1: 0, 0.1: 1, 0.01: 2}[test.step]
    low, high, shown = (f"{number:.{digits}f}" for number in (test.low, test.high, value))
    unit = f" {test.unit}" if test.unit else ""
    sentence = _pick(
        rng,
        (
            f"has a {test.name} of {shown}{unit} (reference range {low} to {high}{unit}).",
            f"had blood and vital signs checked: {test.name} {shown}{unit}, reference range {low} to {high}{unit}.",
            f"is told the result: {test.name} {shown}{unit}. The reference range is {low} to {high}{unit}.",
        ),
    )
    answer = "No" if side == "within" else "Yes"
    return Row(
        instruction=_pick(rng, _LAB_TASKS),
        input=f"{_patient(rng, (18, 88))} {sentence}",
        output=f"{answer}. The {test.name} of {shown}{unit} is {side} the reference range of {low} to {high}{unit}.",
        answer=answer,
        choices=("Yes", "No"),
    )


def _patient(rng: random.Random, ages: tuple[int, int], sex: str = "") -> str:
    """Return the opening of a vignette, such as "Elena, a 34-year-old woman seen at the clinic,"."""
    sex = sex or _pick(rng, ("woman", "man"))
    age = ages[0] + int(rng.random() * (ages[1] - ages[0] + 1))
    person = sex if age >= 18 else {"woman": "girl", "man": "boy"}[sex]
    article = "an" if age in (8, 11, 18) or age in range(80, 90) else "a"
    return f"{_pick(rng, _NAMES[sex])}, {article} {age}-year-old {person} seen {_pick(rng, _PLACES)},"


def _pick(rng: random.Random, items: Sequence[_T]) -> _T:
    return items[int(rng.random() * len(items))]


def _shuffled(rng: random.Random, items: Sequence[_T]) -> list[_T]:
    return [item for _, _, item in sorted((rng.random(), index, item) for index, item in enumerate(items))]
