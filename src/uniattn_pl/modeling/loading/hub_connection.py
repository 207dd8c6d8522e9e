"""Whether the hub can be reached, asked once a process, and whether a model of it can be had."""

from __future__ import annotations

from functools import cache

from uniattn_pl.errors import UserError
from uniattn_pl.printed_commands import hub_model

HUB_TIMEOUT_S = 5.0


class UnopenedModelError(UserError):
    """A model that cannot be looked at here and now, though nothing is known to be wrong with it."""


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


def only_cached(source: str, revision: str | None) -> bool:
    """Whether to read a hub model from the local cache only.

    Raises:
        UnopenedModelError: it is neither there, nor can the hub be reached.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE and hub_answers(constants.ENDPOINT):
        return False
    if isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
        return True
    raise UnopenedModelError(
        f"model '{source}' is not in the local cache and {constants.ENDPOINT} cannot be reached. Copy its "
        "folder here and set model.source to that folder, or fetch it once, with a network: "
        f"{hub_model(source, revision)}"
    )
