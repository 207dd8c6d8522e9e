"""`training.distillation`: learning from another model's outputs, beside the labels or in place of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from uniattn_pl.options import option

ORIGINAL = "original"
DIVERGENCES = (FORWARD_KL, REVERSE_KL, JENSEN_SHANNON) = ("forward_kl", "reverse_kl", "jensen_shannon")
DISTILLED_TOKENS = (ALL_TOKENS, RESPONSE_TOKENS) = ("all", "response")
HIDDEN_ERRORS = {
    "relative": "squared error over the teacher's squared norm",
    "cosine": "1 - cosine",
}


@dataclass
class TermWeights:
    """What a stage minimises: the mean over its distilled tokens of the weighted sum of these terms."""

    labels: float = option(1.0, "weight of the label loss, which every response token brings", minimum=0.0)
    logits: float = option(1.0, "weight of the divergence from the teacher's next-token distribution", minimum=0.0)
    hidden: float = option(
        0.0, "weight of the error of hidden states, which is scaled to the size of the other terms", minimum=0.0
    )

    maps: float = option(
        0.0,
        "weight of the divergence of each source's attention map from the maps that its readers have in the teacher; "
        "stage 1 then trains the sources' queries and keys, too",
        minimum=0.0,
    )

    @property
    def needs_teacher(self) -> bool:
        return self.logits > 0 or self.hidden > 0 or self.maps > 0


@dataclass
class DistillationConfig:
    """Whom the stages learn from besides labels, and how."""

    teacher: str | None = option(
        None,
        f"{ORIGINAL}, a run folder or a model folder to learn from, or another point of the same sweep; null: labels "
        "alone",
        path=True,
    )
    divergence: str = option(FORWARD_KL, "of the student's next-token distribution", allowed=DIVERGENCES)
    temperature: float = option(1.0, "both models' logits are divided by this", minimum=0.01, maximum=100.0)
    tokens: str = option(
        ALL_TOKENS, "what is distilled: all tokens (prompts too), or response", allowed=DISTILLED_TOKENS
    )
    hidden_layers: list[int] = option([], "0-based layers whose output hidden states are compared", minimum=0)
    hidden_error: str = option(
        "relative",
        "; ".join(f"{name}: {text}" for name, text in HIDDEN_ERRORS.items()),
        allowed=tuple(HIDDEN_ERRORS),
    )
    top_k: int | None = option(None, "teacher's largest logits that count, the rest as one; default: all", minimum=1)
    cache: bool = option(False, "keep the teacher's top_k logits on disk, for every fit that learns the same of it")
    cache_limit_gib: float = option(20.0, "size up to which a teacher's logits are kept", minimum=0.0)
    stage1: TermWeights = field(default_factory=TermWeights)
    stage2: TermWeights = field(default_factory=TermWeights)
