"""What is raised for a plan that cannot be."""

from __future__ import annotations

from uniattn_pl.errors import UserError


class PlanError(UserError):
    """The plan cannot be built on this model; names every offending layer."""
