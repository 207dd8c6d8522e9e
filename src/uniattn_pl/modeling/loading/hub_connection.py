"""Whether the hub can be reached, asked once a process."""

from __future__ import annotations

from functools import cache

HUB_TIMEOUT_S = 5.0


@cache
def hub_answers(endpoint: str) -> bool:
    """One short request instead of a download's stack of retries, and one for all points of a sweep."""
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
    except HTTPError:
        return True
    except (URLError, OSError):
        return False
    return True


def is_hub_id(source: str) -> bool:
    """Whether the hub could have a model of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True
