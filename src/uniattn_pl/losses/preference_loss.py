"""What a pair of responses costs, by the log-probabilities that a model and its reference give them.

With a model's log-probability log p(y) and the reference's log q(y) of a response y, each summed over its tokens, the
reward of a response is beta (log p(y) - log q(y)), and m is that of the chosen one minus that of the rejected one:

    sigmoid   -log sigma(m)
    hinge     max(0, 1 - m)
    robust    (-(1 - e) log sigma(m) + e log sigma(-m)) / (1 - 2 e),  e the label smoothing
    ipo       (d - 1 / (2 beta))^2,  d the difference of (log p(y) - log q(y)) / |y| between both
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from uniattn_pl.config.sections.dpo_section import HINGE, IPO, LOSS_TYPES, ROBUST, SIGMOID, DpoConfig

METRICS = (
    *("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
    *("logps/chosen", "logps/rejected"),
)
"""What is shown of pairs, in the order of `pair_metrics`, by TRL's names."""


@dataclass(frozen=True)
class Preferences:
    """Log-probabilities of the responses of B pairs, the chosen ones first.

    Attributes:
        logps: of the model [2, B], summed over the tokens of each response.
        reference: the same of its reference.
        lengths: tokens of each response [2, B].
    """

    logps: Tensor
    reference: Tensor
    lengths: Tensor

    @property
    def ratios(self) -> Tensor:
        """Log p(y) - log q(y) [2, B]."""
        return self.logps - self.reference


def preference_losses(pairs: Preferences, options: DpoConfig) -> Tensor:
    """The loss of each pair [B], with a graph if the model's log-probabilities have one.

    Raises:
        ValueError: no such loss type.
    """
    beta, kind = options.beta, options.loss_type
    if kind == IPO:
        chosen, rejected = pairs.ratios / pairs.lengths.clamp_min(1)
        return (chosen - rejected - 1 / (2 * beta)).square()
    chosen, rejected = pairs.ratios
    margins = beta * (chosen - rejected)
    if kind == SIGMOID:
        return -logsigmoid(margins)
    if kind == HINGE:
        return torch.relu(1 - margins)
    if kind == ROBUST:
        flipped = options.label_smoothing
        return (flipped * logsigmoid(-margins) - (1 - flipped) * logsigmoid(margins)) / (1 - 2 * flipped)
    raise ValueError(f"there is no preference loss '{kind}'; there are {', '.join(LOSS_TYPES)}.")


def pair_metrics(pairs: Preferences, beta: float) -> Tensor:
    """Of each pair what `METRICS` names [6, B]; a reward counts as right where the chosen response has the larger."""
    chosen, rejected = beta * pairs.ratios.detach()
    right = (chosen > rejected).to(chosen)
    return torch.stack([chosen, rejected, right, chosen - rejected, *pairs.logps.detach()])
