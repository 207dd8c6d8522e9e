"""What `make test-fast` leaves out is there, so that nothing becomes fast by being moved or renamed."""

from __future__ import annotations

import pytest

from tests.conftest import FAST_FAMILIES, SLOW, TESTS
from uniattn_pl.families.inspection import FAMILIES


@pytest.mark.parametrize("name", SLOW)
def test_what_is_slow_is_there(name: str) -> None:
    file, _, test = name.partition("::")
    assert (TESTS / file).exists()
    assert not test or f"def {test}(" in (TESTS / file).read_text(encoding="utf-8")


def test_the_families_that_stand_for_all_are_tested_ones() -> None:
    assert set(FAST_FAMILIES) <= set(FAMILIES)
