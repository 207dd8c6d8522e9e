"""Every picture that is drawn from a plan: one per role, one per architecture, and those of the concepts."""

from __future__ import annotations

from pathlib import Path

from tools.pages.examples import EXAMPLES, ROOT, SMALL, shape
from tools.pages.plan_pictures import plan_picture
from tools.pages.role_pictures import role_picture
from uniattn_pl.plan import LayerPlan

FOLDER = ROOT / "docs" / "figures"
STAGE_2 = frozenset({"W_q", "W_k", "W_v", "W_o", "W_c", "FFN"})


def roles() -> dict[str, LayerPlan]:
    """A plan of one layer, or of two where it reads from another, for each role that a plan can give."""
    one, two = LayerPlan.unmodified(1), LayerPlan.unmodified(2)
    return {
        "full": one,
        "reuse": two.reuse([1], 0, compensated=True),
        "share_kv": two.share_kv([1], 0, compensated=False),
        "drop": one.drop([0], compensated=True),
        "skip": one.skip([0], compensated=False),
        "heads": one.merge_heads([0], 1, compensated=True),
        "window": one.limit_window([0], 256, 4, compensated=False),
    }


def figures() -> dict[Path, str]:
    """File -> the picture that it should have."""
    made = {f"roles/{name}": role_picture(plan, f"role {name}") for name, plan in roles().items()}
    for name, example in EXAMPLES.items():
        plan = example.plan(name, shape(SMALL))
        made[f"plans/{name}"] = plan_picture(plan, shape(SMALL), f"{name} on SmolLM2-135M")
    superblock = LayerPlan.unmodified(2).reuse([1], 0, compensated=True)
    made["roles/stage1"] = role_picture(superblock, "what trains in stage 1", frozenset({"W_c"}))
    made["roles/stage2"] = role_picture(superblock, "what trains in stage 2", STAGE_2)
    return {FOLDER / f"{name}.svg": picture for name, picture in made.items()}
