"""`training.dpo`: learning which of two answers is better; names and meanings are those of DPOConfig in TRL."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.options import option

SFT, DPO = "sft", "dpo"
OBJECTIVES = {
    SFT: "the cross-entropy of responses",
    DPO: "preferences: rows have a chosen and a rejected response",
}
SIGMOID, HINGE, IPO, ROBUST = "sigmoid", "hinge", "ipo", "robust"
LOSS_TYPES = {
    SIGMOID: "the loss of DPO (arXiv 2305.18290)",
    HINGE: "none beyond a margin of 1 between the rewards (SLiC, arXiv 2305.10425)",
    IPO: "squared distance of the margin per token from 1 / (2 beta) (arXiv 2310.12036)",
    ROBUST: "DPO where a share of the pairs is the wrong way round (arXiv 2403.00409)",
}
START, ORIGINAL = "start", "original"
REFERENCES = {
    START: "the model that stage 2 begins with",
    ORIGINAL: "the unmodified model",
}


@dataclass
class DpoConfig:
    """Stage 2 on pairs of a chosen and a rejected response, for `training.objective: dpo`."""

    beta: float = option(0.1, "how strongly the reference holds; of ipo its tau", minimum=0.0)
    loss_type: str = option(
        SIGMOID, "; ".join(f"{name}: {text}" for name, text in LOSS_TYPES.items()), allowed=tuple(LOSS_TYPES)
    )
    label_smoothing: float = option(0.0, "robust: share of pairs that are the wrong way round", minimum=0.0)
    reference: str = option(
        START,
        "whose log-probabilities rewards are counted from: "
        + "; ".join(f"{name}: {text}" for name, text in REFERENCES.items()),
        allowed=tuple(REFERENCES),
    )
