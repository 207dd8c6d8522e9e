"""Sending what was exported to the hub."""

from __future__ import annotations

import os
from pathlib import Path

from uniattn_pl.errors import UserError

TOKEN_VARIABLE = "HF_TOKEN"


def check_upload(repository: str) -> None:
    """Check, without a network, that something can be sent to a repository.

    Raises:
        UserError: with all problems: it is no name of one, or there is no token in the environment.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    problems = []
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        problems.append(f"--push-to-hub '{repository}' is no repository: {str(error).splitlines()[0]}")
    if not os.environ.get(TOKEN_VARIABLE):
        problems.append(
            f"--push-to-hub needs a token that may write, in the environment as {TOKEN_VARIABLE}; there is no option "
            "for it, since others can read a command line."
        )
    if problems:
        raise UserError(*problems)


def upload(place: Path, repository: str) -> str:
    """Send an exported folder, or a file, to a repository, made private where it is not there; returns its address.

    Raises:
        UserError: the hub cannot be reached, or refuses it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(token=os.environ[TOKEN_VARIABLE])
    try:
        address = str(api.create_repo(repository, private=True, exist_ok=True))
        if place.is_dir():
            api.upload_folder(folder_path=place, repo_id=repository, commit_message="Exported with uniattn_pl")
        else:
            message = f"{place.name}, exported with uniattn_pl"
            api.upload_file(path_or_fileobj=place, path_in_repo=place.name, repo_id=repository, commit_message=message)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"'{place}' is written, but the hub did not take it for '{repository}': {first}") from error
    return address
