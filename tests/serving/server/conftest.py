"""One tiny converted model behind the server's routes, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.tiny_chat import save_tiny_chat

from uniattn_pl.modeling.loading.pretrained import load_folder, load_folder_tokenizer
from uniattn_pl.serving.server.app import build_app, start_turns
from uniattn_pl.serving.server.questions import Served
from uniattn_pl.serving.server.server_limits import ServerLimits

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}"
    "{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
)
LIMITS = ServerLimits(tokens=512, parallel=4, waiting=60, body_bytes=20_000)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as a fit leaves it, with a chat template."""
    return save_tiny_chat(tmp_path_factory.mktemp("served") / "tiny", TEMPLATE)


@pytest.fixture(scope="session")
def served(folder: Path) -> Served:
    """The model under the name `tiny`."""
    return Served("tiny", load_folder(folder), load_folder_tokenizer(folder), LIMITS)


@pytest.fixture
def client(served: Served) -> Iterator[TestClient]:
    """The server as clients see it."""
    with TestClient(build_app(served, start_turns(served)), raise_server_exceptions=False) as client:
        yield client
