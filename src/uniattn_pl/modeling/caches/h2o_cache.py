"""H2O (Zhang et al., 2023): a cache that keeps the tokens most attended to and the most recent ones (paper Table 3).

Works on top of any plan: the layer whose keys are attended to decides, and every layer that reads them, or a map over
them, keeps the same tokens, so that reuse layers hold exactly the values their map has columns for. Keys are rotated
when they are cached, by their true positions. Cost: the plan's cache times the retain rate; prompts are processed in
full, and the attention of every query is summed, so they had better come in chunks.
"""

from __future__ import annotations

import math

import torch
from transformers import DynamicCache, PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import decoder_of
from uniattn_pl.families.recurrent_states import layers_with_states
from uniattn_pl.kernels.stock import backend_name, has_maps
from uniattn_pl.modeling.caches.growing_layer import GrowingLayer
from uniattn_pl.modeling.caches.plan_cache import fit_cache
from uniattn_pl.modeling.caches.seen_tokens import SeenTokensLayer
from uniattn_pl.modeling.caches.value_only_layers import ValueOnlyLayer
from uniattn_pl.plan import LayerPlan

RECENT_FRACTION = 0.5


class H2OCache(DynamicCache):
    """What `generate(past_key_values=...)` and `prefill(past_key_values=...)` take for one batch of prompts.

    The budget is a fraction of the prompt: before the first decoded token, and before every further one, each layer
    gives up what is beyond it, by KV head. Half of the budget are the most recent tokens, half those with the most
    attention so far. Layers with a sliding window are bounded already and stay as they are.

    Args:
        model: converted, or `unmodified_copy` of a stock one.
        retain_rate: fraction of the prompt's tokens to keep, above 0 and at most 1; 1 keeps everything.

    Raises:
        UserError: retain_rate is not in that range, the model is a stock one, which would ignore it, or none of its
            layers can give tokens up.
    """

    def __init__(self, model: PreTrainedModel, retain_rate: float) -> None:
        plan: LayerPlan | None = getattr(decoder_of(model), "layer_plan", None)
        if plan is None:
            raise UserError("H2O needs a model with this package's attention; take unmodified_copy(model).")
        if not has_maps(model.config):
            kernel = backend_name(model.config)
            raise UserError(f"H2O sums attention maps, which {kernel} does not give; use sdpa or eager.")
        if not 0 < retain_rate <= 1:
            raise UserError(f"an H2O retain rate is above 0 and at most 1; got {retain_rate:g}.")
        if decoder_of(model).caches_latent:
            raise UserError("H2O gives up tokens head by head; a latent attention caches one latent for all heads.")
        super().__init__(config=model.config)
        fit_cache(self, plan)
        self.plan, self.retain_rate = plan, retain_rate
        self.budget: int | None = None
        self.prompt_end = 0
        self.groups: dict[int, HeldTokens] = {}
        for row in plan.rows:
            layer = self.layers[row.index]
            if type(layer) in EVICTING_LAYERS:
                self.layers[row.index] = EVICTING_LAYERS[type(layer)]()
                self.groups.setdefault(plan.root(row.index), HeldTokens())
        if not self.groups and layers_with_states(model.config):
            raise UserError("no layer of this model could give tokens up for H2O: all carry a state beside them.")

    def expect_prompt(self, length: int) -> None:
        """So many tokens are a prompt; their last chunk may be a single token, too."""
        self.prompt_end = int(self.get_seq_length()) + length

    def begin_forward(self, length: int) -> None:
        """Make room before a single token behind the prompt; count the `length` tokens to come."""
        if length == 1 and self.get_seq_length() >= self.prompt_end:
            self.compress()
        for kept in self.groups.values():
            kept.expect(length)

    def compress(self) -> None:
        """Give up what is beyond the budget, which the first call sets by what the cache holds then."""
        for root, kept in self.groups.items():
            held = 0 if kept.scores is None else kept.scores.shape[-1]
            if self.budget is None and held:
                self.budget = max(1, round(self.retain_rate * held))
            if self.budget is None or held <= self.budget:
                continue
            chosen = kept.choose(self.budget)
            for row in self.plan.rows:
                layer = self.layers[row.index]
                if isinstance(layer, _EvictingLayer) and self.plan.root(row.index) == root:
                    layer.keep(chosen)

    def observes(self, root: int) -> bool:
        """Whether the attention to the keys of layer `root` is to be summed."""
        return self.retain_rate < 1 and root in self.groups

    def visible(self, root: int, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Of a mask [B or 1, 1, L, S] over all S tokens there were, the columns [B, Hkv, L, K] that `root` holds."""
        positions = self.groups[root].positions if root in self.groups else None
        if positions is None or mask is None:
            return mask
        wide = mask.expand(*positions.shape[:2], *mask.shape[2:])  # [B, Hkv, L, S]
        return wide.gather(3, positions[:, :, None, :].expand(-1, -1, mask.shape[2], -1))  # [B, Hkv, L, K]

    def observe(self, root: int, attention_map: torch.Tensor, num_groups: int, mask: torch.Tensor | None) -> None:
        """Add up what the queries of a map [B, H, L, K] give to each token; queries of padding do not count."""
        batch, _, length, held = attention_map.shape
        given = (
            attention_map.view(batch, num_groups, -1, length, held).float().sum(2)
        )  # [B, Hkv, L, K], summed over the heads of a group
        if mask is not None:
            real = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            given = given * real[:, :1, -1:, -length:].transpose(2, 3)  # [B, 1, L, 1]: padding gives nothing
        self.groups[root].add(given.sum(2))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences of the batch."""
        super().batch_select_indices(indices)
        for kept in self.groups.values():
            kept.select(indices)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Give every beam the cache of the one it continues."""
        super().reorder_cache(beam_idx)
        for kept in self.groups.values():
            kept.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        super().batch_repeat_interleave(repeats)
        for kept in self.groups.values():
            if kept.scores is not None:
                rows = torch.arange(len(kept.scores), device=kept.scores.device)
                kept.select(rows.repeat_interleave(repeats))


class HeldTokens:
    """Which tokens the layers of one group hold, and the attention each has had.

    `scores` [B, Hkv, K]; `positions` [B, Hkv, K], ascending, once a token has gone (None: all are there).
    """

    def __init__(self) -> None:
        self.scores: torch.Tensor | None = None
        self.positions: torch.Tensor | None = None
        self.seen = 0

    def expect(self, length: int) -> None:
        """The next `length` positions are about to be cached."""
        if self.positions is not None:
            batch, groups, _ = self.positions.shape
            new = torch.arange(self.seen, self.seen + length, device=self.positions.device)
            self.positions = torch.cat([self.positions, new.expand(batch, groups, -1)], dim=-1)
        self.seen += length

    def add(self, given: torch.Tensor) -> None:
        """Add attention [B, Hkv, K]; the last columns may be new."""
        if self.scores is not None:
            given[..., : self.scores.shape[-1]] += self.scores
        self.scores = given

    def choose(self, budget: int) -> torch.Tensor:
        """Indices [B, Hkv, budget] of what stays, ascending; the rest is forgotten."""
        assert self.scores is not None
        held, recent = self.scores.shape[-1], math.ceil(RECENT_FRACTION * budget)
        heavy = self.scores[..., : held - recent].topk(budget - recent, dim=-1).indices
        last = torch.arange(held - recent, held, device=heavy.device).expand(*heavy.shape[:2], -1)  # [B, Hkv, recent]
        chosen = torch.cat([heavy.sort(dim=-1).values, last], dim=-1)  # [B, Hkv, budget]
        self.scores = self.scores.gather(-1, chosen)
        self.positions = chosen if self.positions is None else self.positions.gather(-1, chosen)
        return chosen

    def select(self, indices: torch.Tensor) -> None:
        """Keep these sequences of the batch, in this order."""
        if self.scores is not None:
            self.scores = self.scores[indices]
        if self.positions is not None:
            self.positions = self.positions[indices]


class _EvictingLayer(SeenTokensLayer, GrowingLayer):
    """A layer of which tokens are taken away."""

    what = "H2O"

    def keep(self, chosen: torch.Tensor) -> None:
        """Hold the tokens at these indices [B, Hkv, K] only."""
        for name in ("keys", "values"):
            held = getattr(self, name)
            setattr(self, name, held.gather(2, chosen[..., None].expand(-1, -1, -1, held.shape[-1])))


class _EvictingValues(_EvictingLayer, ValueOnlyLayer):
    """The same for layers that hold values only."""


EVICTING_LAYERS: dict[type, type[_EvictingLayer]] = {GrowingLayer: _EvictingLayer, ValueOnlyLayer: _EvictingValues}
