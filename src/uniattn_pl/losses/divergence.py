"""How far a model's distribution over the next token lies from another's, summed over tokens, in float32.

With p the teacher's and q the student's distribution at a temperature T (softmax of logits / T), per token:

    forward KL   sum_v p_v (log p_v - log q_v)
    reverse KL   sum_v q_v (log q_v - log p_v)
    Jensen-Shannon   (KL(p | m) + KL(q | m)) / 2,  m = (p + q) / 2

times T^2, so that gradients keep their size whatever T (Hinton et al., arXiv 1503.02531, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from uniattn_pl.config.sections.distillation_section import DIVERGENCES, FORWARD_KL, JENSEN_SHANNON, REVERSE_KL

LEAST_MASS = 1e-7


@dataclass(frozen=True)
class TopLogits:
    """What is kept of a teacher's logits: the largest k, and the mass of all others.

    Attributes:
        ids: token ids [N, k].
        log_probabilities: of these tokens [N, k] at the temperature they were taken at, float32.
        rest: log of the mass of all others [N].
    """

    ids: Tensor
    log_probabilities: Tensor
    rest: Tensor

    @classmethod
    def of(cls, logits: Tensor, k: int, temperature: float = 1.0) -> TopLogits:
        """Of logits [N, vocabulary]; k = vocabulary keeps all."""
        kept = log_probabilities(logits, temperature)
        values, ids = kept.topk(min(k, kept.shape[-1]), dim=-1)
        return cls(ids, values, _log_of_rest(values))

    @classmethod
    def cat(cls, parts: Sequence[TopLogits]) -> TopLogits:
        """The tokens of several, one after the other."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __getitem__(self, tokens: slice | Tensor) -> TopLogits:
        return TopLogits(*(tensor[tokens] for tensor in self.tensors().values()))

    def to(self, device: torch.device | str) -> TopLogits:
        """The same on a device."""
        return TopLogits(*(tensor.to(device) for tensor in self.tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Of the next token [N, vocabulary] at a temperature, in float32."""
    logits = logits.float()
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def summed_divergence(log_q: Tensor, teacher: Tensor | TopLogits, kind: str, temperature: float = 1.0) -> Tensor:
    """T^2 times the divergence of the student's distribution from the teacher's, summed over N tokens.

    Of a teacher of which only the largest logits were kept, all other tokens count as one, with their mass together on
    either side: that is a lower bound of the divergence, and the divergence itself where k is the whole vocabulary.

    Args:
        log_q: the student's `log_probabilities` [N, vocabulary], with a graph.
        teacher: log p, without one, or what was kept of the teacher's logits.
        kind: of `DIVERGENCES`.
        temperature: T, at which both were taken.

    Raises:
        ValueError: no such kind.
    """
    if isinstance(teacher, TopLogits):
        log_p = torch.cat([teacher.log_probabilities, teacher.rest[:, None]], dim=-1)  # [N, k + 1]
        chosen = log_q.gather(-1, teacher.ids)
        log_q = torch.cat([chosen, _log_of_rest(chosen)[:, None]], dim=-1)
    else:
        log_p = teacher
    if kind == FORWARD_KL:
        total = _kl(log_p, log_q)
    elif kind == REVERSE_KL:
        total = _kl(log_q, log_p)
    elif kind == JENSEN_SHANNON:
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        total = (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2
    else:
        raise ValueError(f"there is no divergence '{kind}'; there are {', '.join(DIVERGENCES)}.")
    return temperature**2 * total


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Summed KL(p | q) of log probabilities [N, v]."""
    return nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _log_of_rest(log_probabilities: Tensor) -> Tensor:
    """log(1 - sum of exp) [N] of some tokens' log probabilities [N, k]; of `LEAST_MASS` at least, as float32 has it."""
    return (-torch.expm1(log_probabilities.logsumexp(-1))).clamp(min=LEAST_MASS).log()


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Summed squared error of hidden states [N, d] over the teacher's squared norm (Puzzle, arXiv 2411.19146)."""
    wanted = teacher.float()
    error = (student.float() - wanted).square().sum(-1)
    return (error / (wanted.square().sum(-1) + 1e-6)).sum()


def cosine_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Summed 1 - cosine of hidden states [N, d]."""
    return (1 - nn.functional.cosine_similarity(student.float(), teacher.float(), dim=-1)).sum()
