"""Bad inputs, drawn: bytes of good files changed in places, and JSON of good files with other values in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from uniattn_pl.errors import UserError

# No number of examples: that is the profile's.
in_bounds = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)

ODD_TEXTS = ["", " ", "\0", "\ud83d", "a" * 300, "../../x", "llama", "auto", "1", "é", "\n", "{}", "{0}", "%s", "None"]
ODD_NUMBERS = [0, 1, -1, 2, 7, 2**31, -(2**63), 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf"), -0.0]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TEXTS),
    st.text(st.characters(), max_size=8),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)


@st.composite
def changed_bytes(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """The bytes of a good file with up to five places overwritten, taken out, put in, or everything behind cut off."""
    data = bytearray(draw(st.sampled_from(list(seeds))))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(0, len(data))))
        match draw(st.sampled_from(["overwrite", "insert", "remove", "cut", "repeat"])):
            case "overwrite":
                new = draw(st.binary(min_size=1, max_size=8))
                data[at : at + len(new)] = new
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "remove":
                del data[at : at + draw(st.integers(1, 16))]
            case "cut":
                del data[at:]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


@st.composite
def changed_json(draw: st.DrawFn, good: Any, replacements: st.SearchStrategy[Any] = values) -> Any:
    """A good value with up to three of the values in it replaced, or taken away."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key] or draw(st.integers(0, 3)) == 0:
                if draw(st.integers(0, 4)) == 0:
                    del place[key]
                else:
                    place[key] = draw(replacements)
                break
            place = place[key]
    return value


def written(value: Any) -> bytes:
    """A value as JSON, half characters and numbers that JSON does not have included."""
    return json.dumps(value).encode()


def used_or_refused(names: str, use: Callable[[], object]) -> None:
    """Use a file: it works, or a UserError names it, in one line that can be printed."""
    problems: list[str] = []
    try:
        use()
    except UserError as error:
        problems = error.problems or ["nothing is said"]
    for problem in problems:
        assert names in problem, problem
        assert len(problem) < 3_000, problem
