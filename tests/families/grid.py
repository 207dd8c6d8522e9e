"""Every tested family under every role on every kernel: the cells of the grid, and the plan of each."""

from __future__ import annotations

import os
from itertools import product

from tests.tiny_models import EAGER_ONLY, shape

from uniattn_pl.families.inspection import FAMILIES
from uniattn_pl.plan import LayerPlan

WHOLE_GRID = "UNIATTN_PL_WHOLE_GRID"
"""The environment variable under which all cells are run, not the sample."""

ROLES = ("reuse", "share_kv", "drop", "skip", "heads", "window", "mixed")
MODES = {"reuse": ("materialise", "replay"), "mixed": ("materialise", "replay")}
KERNELS = ("eager", "sdpa")
# Source -> its readers. Of these, layers 2 and 5, or 0 and 5, rotate nothing; they are linked with each other.
LINKS = {1: (2,), 3: (4, 5)}
UNROTATED_ENDS = {0: (5,), 1: (2,), 3: (4,)}
LINKS_OF_KEYS = dict.fromkeys(("exaone4", "cohere2", "llama4_text"), UNROTATED_ENDS)
LINKS_OF_KEYS["smollm3"] = {2: (5,), 0: (1,), 3: (4,)}
# All heads have one latent; layers give the stream beside something else.
WITHOUT = {
    "heads": {"deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_linear"},
    "skip": {"bamba", "falcon_h1"},
}
Cell = tuple[str, str, str, str]


def cells() -> list[Cell]:
    """All of (family, role, kernel, mode), or of each family one, with which every role and kernel is met."""
    grid: list[Cell] = []
    for number, family in enumerate(FAMILIES):
        kernels = KERNELS[:1] if family in EAGER_ONLY else KERNELS
        roles = [role for role in ROLES if family not in WITHOUT.get(role, ())]
        of_family = [(family, r, k, mode) for r, k in product(roles, kernels) for mode in MODES.get(r, ("auto",))]
        chosen = 7 * number % len(of_family)  # 7 and the 18 (of eager alone: 9) cells have no divisor in common
        grid += of_family if WHOLE_GRID in os.environ else [of_family[chosen]]
    return grid


def plan_for(family: str, role: str) -> LayerPlan:
    """Layers of one role, some with a W_c; `mixed`: of all roles together. Layer i of those that attend."""
    of, plan = shape(family).attention_layers, LayerPlan.stock(shape(family))
    windows = [shape(family).layers[layer].window for layer in of]
    if role == "drop":
        return plan.drop([of[1]], compensated=False).drop([of[4]], compensated=True)
    if role == "skip":
        plan = plan.skip([of[0]], compensated=False)
        return plan.replace_run(3, 4) if of[4] == 4 else plan.skip([of[3]], compensated=True)
    if role == "heads":
        return plan.merge_heads([of[1]], 1, compensated=False).merge_heads([of[4]], 1, compensated=True)
    if role == "window":
        sinks = [0 if window is not None else 2 for window in windows]
        plan = plan.limit_window([of[1]], 4, sinks[1], compensated=False)
        return plan.limit_window([of[4]], 4, sinks[4], compensated=True)
    if role == "mixed":
        plan = plan.reuse([of[2]], of[1], compensated=True).drop([of[0]], compensated=True)
        plan = plan.skip([of[5]], compensated=False) if family not in WITHOUT["skip"] else plan
        (source, readers), *_ = reversed(_links(family, "share_kv", windows).items())
        return plan.share_kv([of[readers[0]]], of[source], compensated=True)
    for source, readers in _links(family, role, windows).items():
        plan = plan.assign([of[reader] for reader in readers], role, of[source], compensated=source == 1)
    return plan


def _links(family: str, role: str, windows: list[int | None]) -> dict[int, tuple[int, ...]]:
    """Of the links, those whose source sees as far as its reader."""
    links = LINKS_OF_KEYS.get(family, LINKS) if role == "share_kv" else LINKS
    seen = {s: tuple(r for r in readers if windows[s] in (None, windows[r])) for s, readers in links.items()}
    return {source: readers for source, readers in seen.items() if readers}
