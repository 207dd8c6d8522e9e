"""What the tests of refusals share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from uniattn_pl.errors import UserError


@pytest.fixture
def user_error() -> Callable[..., None]:
    """Call a function that must refuse its arguments with a message that holds a text."""

    def check(message: str, function: Callable[..., Any], *arguments: Any) -> None:
        with pytest.raises(UserError) as caught:
            function(*arguments)
        assert message in str(caught.value)

    return check
