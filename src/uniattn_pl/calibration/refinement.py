"""Refinement: what a layer was fitted, trained for a few steps behind the closed form, while all batches are there.

The closed form makes the squared error behind the attention least, in which few tokens of large norm count most, and
knows nothing of the feed-forward. Refinement goes on from it by Adam, with W_c, W_o where the initialiser fits it, and
where asked for the feed-forward's W_down, on what leaves the layer (block-local distillation; Puzzle, arXiv 2411.19146;
ReplaceMe, arXiv 2505.02819, for the cosine), per token t of the original's o_t and the converted layer's u_t:

    relative    |u_t - o_t|^2 / (|o_t|^2 + 1e-6)
    cosine      1 - cos(u_t, o_t)

Layers stay independent and memory is that of one layer and one batch. What it makes is kept where it lowers that error
on held-out batches, else the closed form stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from uniattn_pl.calibration.layer_choices import LayerChoices
from uniattn_pl.calibration.weights import Weights, read_weights, write_weights
from uniattn_pl.config.sections.calibration_section import JOINT, RefineConfig
from uniattn_pl.families.inspection import PUBLICATIONS, attention_path, decoder_layers
from uniattn_pl.families.passed_layers import hidden_of
from uniattn_pl.losses.divergence import cosine_error, relative_error
from uniattn_pl.plan import LayerRow
from uniattn_pl.resilience.ranks import sum_over_ranks

_ERRORS = {"relative": relative_error, "cosine": cosine_error}


@dataclass(frozen=True)
class Refinement:
    """How long, how fast and on what the weights of each layer are refined.

    Args:
        steps: of Adam, one batch each, in the order of the batches and from the first again.
        learning_rate: of the first step; it falls linearly to zero.
        error: a name of `REFINED_ERRORS`.
        feed_forward: W_down of the layer is trained, too; a layer without attention has no W_o to be corrected.
    """

    steps: int
    learning_rate: float = 1e-4
    error: str = "relative"
    feed_forward: bool = False

    @classmethod
    def configured(cls, config: RefineConfig) -> Refinement | None:
        """As the config says; None: no steps."""
        chosen = {name: value for name, value in vars(config).items() if value is not None}
        return cls(**chosen) if config.steps else None


class LayerRefinement(LayerChoices):
    """Streams on which the weights of a solved layer can be refined.

    Attributes:
        refinement: None: closed forms stay as they are.
        place: rank and world size; batch number b of all ranks is batch b // world_size of rank b % world_size.
        num_batches: to fit on, of all ranks.
    """

    refinement: Refinement | None = None
    place = (0, 1)
    num_batches = 0

    def _refining_visits(self) -> int:
        """Batches of this rank that the refinement of a layer runs."""
        if self.refinement is None:
            return 0
        held_out = len(self.batches) - self.num_fitted
        return 2 * held_out + sum(batch is not None for batch in self._turns(self.refinement.steps))

    def _turns(self, steps: int) -> list[int | None]:
        """By step this rank's batch, None: another rank's turn. So ranks take the very steps of one process."""
        rank, world_size = self.place
        batches = [step % self.num_batches for step in range(steps)]
        return [batch // world_size if batch % world_size == rank else None for batch in batches]

    def _refine(self, row: LayerRow, initialiser: str) -> bool | None:
        """Refine a solved layer that its batches have not passed yet; whether that was kept, None: it is not wanted."""
        if self.refinement is None:
            return None
        layer = decoder_layers(self.converted)[row.index]
        fitted = self._fitted_weights(layer, row)
        attention = f"{attention_path(layer)}."
        trained = {
            name: weight.float().clone().requires_grad_()  # bfloat16 has no room for small steps
            for name, weight in fitted.items()
            if initialiser == JOINT or name.startswith(f"{attention}w_c.") or not name.startswith(attention)
        }
        before = self._held_out_error(row, {})
        self._train(row, trained, self.refinement)
        refined = {name: weight.detach().to(fitted[name].dtype) for name, weight in trained.items()}
        kept = self._held_out_error(row, refined) < before
        if kept:
            write_weights(layer, refined, decoder_layers(self.original)[row.index])
        return kept

    def _fitted_weights(self, layer: Any, row: LayerRow) -> Weights:
        """What this pass may change in a layer."""
        feed_forward = self.refinement is not None and self.refinement.feed_forward
        return read_weights(layer, row, feed_forward=feed_forward)

    def _train(self, row: LayerRow, trained: Weights, refinement: Refinement) -> None:
        optimizer = torch.optim.Adam(trained.values(), lr=refinement.learning_rate)
        for step, batch in enumerate(self._turns(refinement.steps)):
            for group in optimizer.param_groups:
                group["lr"] = refinement.learning_rate * (1 - step / refinement.steps)
            gradients = [torch.zeros_like(weight) for weight in trained.values()]
            if batch is not None:
                with torch.enable_grad():
                    error = self._error(row, batch, trained) / self.masks[batch].sum()
                    gradients = list(torch.autograd.grad(error, list(trained.values())))
            for weight, gradient in zip(trained.values(), gradients, strict=True):
                weight.grad = sum_over_ranks(gradient) if self.distributed else gradient
            optimizer.step()

    def _held_out_error(self, row: LayerRow, weights: Mapping[str, Tensor]) -> float:
        """Mean over the tokens of the held-out batches, of all ranks."""
        held_out: Sequence[int] = range(self.num_fitted, len(self.batches))
        total = sum(float(self._error(row, batch, weights)) for batch in held_out)
        both = torch.tensor([total, sum(int(self.masks[batch].sum()) for batch in held_out)], dtype=torch.float64)
        both = sum_over_ranks(both) if self.distributed else both
        return float(both[0] / both[1])

    def _error(self, row: LayerRow, batch: int, weights: Mapping[str, Tensor]) -> Tensor:
        """Of what leaves the converted layer with these weights, summed over a batch's tokens.

        The target is the original's stream behind the layer, or behind all blocks that its W_c stands for.
        """
        assert self.refinement is not None
        inputs = self._inputs(batch, row)
        layer = decoder_layers(self.converted)[row.index]
        present = dict(layer.named_parameters())
        replaced = {name: weight.to(present[name].dtype) for name, weight in weights.items()}
        state = self._state(row, batch, inputs)
        arguments = {**inputs.arguments[row.index], PUBLICATIONS: state}
        hidden = self._hidden("unified", row.index, batch, inputs)
        output = hidden_of(functional_call(layer, replaced, (hidden,), arguments))
        target = self.store.get(self._stream("original", row.index + 1), batch)
        with torch.no_grad():
            target = self._behind_run(row, target, inputs)
        mask = self.masks[batch].to(hidden.device)
        return _ERRORS[self.refinement.error](output[mask], target[mask])
