"""Hub data sets through `datasets`; one request before tells whether the hub answers and saves minutes of retries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from uniattn_pl.data.records import Record, row_place
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.printed_commands import hub_data

_TIMEOUT_S = 5.0


def read_hub(name: str, split: str, *, hint: str = "") -> Iterator[Record]:
    """Return the records of one split of a hub data set, from the hub or from the local cache.

    Args:
        name: `owner/name` or `name`.
        split: a split, or a slice such as "train[:1000]".
        hint: appended to the message when there is no such data set.

    Raises:
        UserError: not on the hub, not in the cache while the hub cannot be reached, or no such split.
    """
    import pyarrow as pa

    rows = _load(name, split, hint)
    index = 0
    try:
        for index, value in enumerate(rows):
            yield Record(value, partial(row_place, f"{name} ({split})", index))
    except (pa.ArrowException, OSError) as error:  # a damaged file of the local cache
        reason = " ".join(str(error).split())
        raise UserError(
            f"hub data set '{name}', split '{split}', cannot be read after row index {index}: {reason}; delete it from "
            "the cache and load it again."
        ) from None


def _load(name: str, split: str, hint: str) -> Any:
    import datasets

    state = _hub_state(name)
    try:
        with _offline(state != "exists"):
            return datasets.load_dataset(name, split=split)
    except Exception as error:  # `datasets` raises many types; each becomes one sentence with its own words
        if state == "exists":
            raise UserError(cannot_load(name, split, error)) from None
        if state == "unknown":
            raise UserError(
                f"data source '{name}' is neither 'embedded', nor a local file, nor a data set on the hub "
                f"(or it is private: run `hf auth login`).{hint}"
            ) from None
        raise UserError(
            f"data source '{name}' is not a local file, and as a hub data set it is not in the local cache and the "
            f"hub cannot be reached.{hint} Give a .json, .jsonl or .parquet file as data.source, or copy "
            f"~/.cache/huggingface here once it was fetched where there is a network: {hub_data(name, split)}"
        ) from None


def stream_hub(
    name: str, split: str, *, config: str | None = None, revision: str | None = None
) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of one split of a hub data set as they come, without keeping them.

    Raises:
        UserError: there is no such data set or split, or the hub cannot be reached, also on the way.
    """
    import datasets

    if _hub_state(name) == "unreachable":
        raise UserError(f"hub data set '{name}' cannot be read: the hub cannot be reached.")
    try:
        yield from datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
    except Exception as error:  # `datasets` raises many types; each becomes one sentence with its own words
        raise UserError(cannot_load(name, split, error)) from None


def _hub_state(name: str) -> str:
    """Ask the hub once: "exists", "unknown" (no such data set) or "unreachable"."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(name, timeout=_TIMEOUT_S)
    except GatedRepoError:
        return "exists"  # loading it explains how to get access
    except (RepositoryNotFoundError, HFValidationError):
        return "unknown"
    except Exception:  # offline mode, no name service, a proxy's refusal, a timeout: the cache may still have it
        return "unreachable"
    return "exists"


def hub_commit(name: str) -> str | None:
    """The commit that a hub data set is at, where the hub tells it.

    Raises:
        UserError: there is no such data set, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return HfApi().dataset_info(name, timeout=_TIMEOUT_S).sha
    except GatedRepoError:
        return None  # loading it explains how to get access
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"data source '{name}' is neither a local file or folder, nor a data set on the hub (or it is private: run "
            "`hf auth login`)."
        ) from None
    except Exception as error:  # offline mode, no name service, a proxy's refusal, a timeout
        raise UserError(
            f"data source '{name}' is not a local file or folder, and the hub, from which it would be streamed, cannot "
            f"be reached ({' '.join(str(error).split())[:200]}); give files, as in data.source='shards/*.parquet'."
        ) from None


def cannot_load(name: str, split: str, error: Exception) -> str:
    """What to tell of a hub data set that is there and cannot be loaded."""
    reason = " ".join(str(error).split())
    near = did_you_mean(split, re.findall(r"\w+", reason.partition("Should be one of")[2]))
    return f"hub data set '{name}', split '{split}', cannot be loaded: {reason}{near}"


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Keep `datasets` from retrying a hub that was just found unreachable; it then reads its cache only."""
    import datasets.config
    import huggingface_hub.constants

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    if offline:
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before
