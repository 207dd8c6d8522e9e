"""Which token comes next: the likeliest, or one drawn at a temperature from a share of the distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest token every time.
        top_k: draw from so many of the likeliest; 0: from all.
        top_p: draw from the likeliest that together have this probability; 1: from all.
        seed: of what is drawn; None: another text every time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


class TokenChooser:
    """Chooses tokens of one text or of several, one after the other, with random numbers of its own.

    Args:
        number: of this chooser among those of one seed, which draw differently.
    """

    def __init__(self, sampling: Sampling, device: torch.device, *, number: int = 0) -> None:
        self.greedy = sampling.temperature == 0
        self.warpers = LogitsProcessorList()
        if self.greedy:
            return
        self.warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        self.random = torch.Generator(device)
        if sampling.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed((sampling.seed + number) % 2**64)

    def choose(self, logits: Tensor) -> int:
        """The token that follows, of logits [vocabulary]."""
        if self.greedy:
            return int(logits.argmax())
        warped: Tensor = self.warpers(None, logits[None].float())  # type: ignore[arg-type]  # none looks at the text
        return int(torch.multinomial(warped.softmax(-1), 1, generator=self.random))
