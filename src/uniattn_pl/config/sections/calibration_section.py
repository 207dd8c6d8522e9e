"""`calibration`: how the compensation starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from uniattn_pl.config.sections.limits import LARGEST_BATCH
from uniattn_pl.options import option

INITIALISERS = {
    "zero": "W_c = 0: unification without compensation",
    "theorem37": "closed form of the paper's Theorem 3.7, on the mean over samples per position",
    "least_squares": "ridge regression of W_c on the attention error, over all tokens",
    "joint_least_squares": "ridge regression of W_o and W_c together, over all tokens",
}
JOINT = "joint_least_squares"
LEAST_SQUARES = ("least_squares", JOINT)
REFINED_ERRORS = {
    "relative": "squared error of what leaves the layer, over the squared norm of the original's",
    "cosine": "1 - cosine of what leaves the layer and the original's",
}
HEAD_ALIGNMENTS = {
    "none": "head h of a reuse layer uses the map of the source's head h",
    "similarity": "it uses the source head whose map is most like its own",
    "output_error": "it uses the source head whose map leaves the least error in its output",
}


@dataclass
class RefineConfig:
    """Steps of Adam on what was fitted of each layer, behind the closed form; kept where held-out rows gain."""

    steps: int | None = option(None, "steps of one batch for every layer; null: the closed form stays", minimum=1)
    learning_rate: float | None = option(None, "of the first step, falling to zero; default: 1e-4", minimum=0.0)
    error: str | None = option(None, "what is made least; default: relative", allowed=tuple(REFINED_ERRORS))
    feed_forward: bool | None = option(None, "W_down of the layer's feed-forward is refined, too; null: no")


@dataclass
class CalibrationConfig:
    """How the compensation W_c starts (paper section 3.3, Theorem 3.7)."""

    initialiser: str = option("joint_least_squares", "how W_c (and W_o) are fitted", allowed=tuple(INITIALISERS))
    num_samples: int = option(1000, "training sequences of the pass (paper: 1,000)", minimum=1)
    skip_samples: int = option(0, "training sequences passed over first, for another sample", minimum=0)
    held_out_samples: int = option(32, "validation sequences on which the error is reported", minimum=1)
    batch_size: int = option(8, "sequences advanced together", minimum=1, maximum=LARGEST_BATCH)
    ridge: float | str = option(1e-2, "times the Gram matrix's mean diagonal; auto: on held-out rows, by layer")
    rank: int | str | None = option(None, "of W_c as two thin matrices; auto: chosen by layer; null: full", minimum=1)
    rank_keeps: float | None = option(None, "share of the repaired error rank=auto keeps; default: 0.95", maximum=1)
    bias: bool | None = option(None, "W_c adds a constant vector, too; null: no")
    refine: RefineConfig = field(default_factory=RefineConfig)
    head_alignment: str = option("none", "which head of its source a reuse head uses", allowed=tuple(HEAD_ALIGNMENTS))
    memory_limit_gib: float = option(0.0, "hidden streams beyond this go to temporary files ($TMPDIR)", minimum=0.0)
    device_memory_limit_gib: float | None = option(
        None, "hidden streams that stay on a GPU, besides; default: a quarter of what is free there", minimum=0.0
    )
