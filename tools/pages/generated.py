"""Everything that is generated in docs/, but for what the results are made of."""

from __future__ import annotations

import json
from pathlib import Path

from tools.pages.architecture_pages import pages
from tools.pages.examples import ROOT
from tools.pages.figures import figures
from uniattn_pl.api.api_page import api_page
from uniattn_pl.config.json_schema import experiment_schema
from uniattn_pl.config.reference_page import SCHEMA_FILE, reference_page


def generated() -> dict[Path, str]:
    """File -> what it should hold."""
    docs = ROOT / "docs"
    return {
        **figures(),
        **pages(),
        docs / "api.md": api_page(),
        docs / "configuration.md": reference_page(),
        docs / SCHEMA_FILE: json.dumps(experiment_schema(), indent=1) + "\n",
    }
