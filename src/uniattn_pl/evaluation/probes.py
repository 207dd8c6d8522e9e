"""Probes beside the benchmark tasks: held-out perplexity, and the loss by position on long text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torchmetrics.text import Perplexity
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uniattn_pl.data.prompt_ids import prefix_ids, text_ids
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.compressed import compressed_response_loss
from uniattn_pl.evaluation.evaluation_results import Estimate, Result
from uniattn_pl.evaluation.subsample import choose_rows
from uniattn_pl.families.recurrent_states import layers_with_states
from uniattn_pl.losses.response_loss import IGNORED, logits_at
from uniattn_pl.losses.row_logits import inputs_on
from uniattn_pl.modeling.length_rotations import rotated_for

Progress = Callable[[int, int], None]
FIRST_BUCKET = 64  # positions; earlier ones say more about how a text begins than about attention
CHUNK = 512  # queries whose logits are in memory together


@torch.no_grad()
def held_out(model: PreTrainedModel, batches: list[dict[str, Any]], progress: Progress) -> Result:
    """Loss (nats per response token) and perplexity on held-out rows; intervals over rows.

    Args:
        model: any language model.
        batches: dicts of a model's inputs and labels [B, L], -100 where not scored.
        progress: called with batches done and in all.
    """
    perplexity = Perplexity(ignore_index=IGNORED).to(model.device)
    losses: list[tuple[float, int]] = []
    for done, batch in enumerate(batches, start=1):
        targets = pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        scored = targets != IGNORED
        inputs = inputs_on(batch, model.device)
        logits = logits_at(model, inputs, scored.flatten().nonzero().squeeze(-1).to(model.device)).float()
        scored_targets = targets[scored].to(model.device)
        perplexity.update(logits[None], scored_targets[None])
        by_row = cross_entropy(logits, scored_targets, reduction="none").split(scored.sum(1).tolist())
        losses += [(float(row.sum()), len(row)) for row in by_row if len(row)]
        progress(done, len(batches))
    loss = Estimate.ratio(losses)
    figures = {"response_loss": loss, "perplexity": exponential(loss, float(perplexity.compute()))}
    details = [{"row": i, "loss": total / count, "tokens": count} for i, (total, count) in enumerate(losses)]
    return Result("held_out", len(losses), figures, details)


def compressed_held_out(model: PreTrainedModel, rows: Iterable[dict[str, Any]], retain_rate: float) -> Result:
    """As `held_out`, with each prompt's cache compressed by H2O; `rows` are batches of one sequence."""
    single = list(rows)
    score = compressed_response_loss(model, single, retain_rate)
    loss = Estimate(score.response_loss)
    figures = {"response_loss": loss, "perplexity": exponential(loss, math.exp(loss.value))}
    return Result("held_out", len(single), figures | {"kv_bytes_per_token": Estimate(score.kv_bytes_per_token)})


@torch.no_grad()
def loss_by_position(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: Path,
    window: int,
    *,
    limit: int | None,
    seed: int,
    progress: Progress,
) -> Result:
    """Loss (nats per token) in buckets of powers of two by how many tokens come before; intervals over windows.

    Args:
        model: any causal language model.
        tokenizer: of the model.
        text: a plain text file; cut into windows that do not overlap, what is left over is not used.
        window: tokens of a window, with the BOS at its start where the tokenizer puts one before a text.
        limit: windows at most, a seeded choice; None: all.
        seed: of that choice.
        progress: called with windows done and in all.

    Raises:
        UserError: the text is shorter than one window, or is no text.
    """
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"evaluation.text: '{text}' is not a text file in UTF-8.") from error
    prefix = prefix_ids(tokenizer)
    ids, length = text_ids(tokenizer, [content])[0], window - len(prefix)
    count = len(ids) // length if length > 0 else 0
    if count == 0:
        raise UserError(f"evaluation.text: '{text}' has {len(ids)} tokens, fewer than one window of {window}.")
    chosen = choose_rows(count, limit, seed=seed)
    losses = []
    for done, index in enumerate(chosen, start=1):
        tokens = torch.tensor(prefix + ids[index * length : (index + 1) * length], device=model.device)
        losses.append(_token_losses(model, tokens))
        progress(done, len(chosen))
    # Column i is the loss of token i + 1; the first of text is behind the prefix, and without one the second.
    by_window, first = torch.stack(losses), max(1, len(prefix))
    figures = {"loss": _mean(by_window[:, first - 1 :].mean(1))}
    for start, stop in _buckets(window):
        if stop > first:
            figures[f"loss_{start}-{stop - 1}"] = _mean(by_window[:, max(start, first) - 1 : stop - 1].mean(1))
    means = by_window[:, first - 1 :].mean(1).tolist()
    details = [{"window": index, "loss": loss} for index, loss in zip(chosen, means, strict=True)]
    return Result("positions", len(chosen), figures, details)


def _token_losses(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The loss [L - 1] of each token of `ids` [L] but the first, chunk by chunk over one cache."""
    cache, losses = None, []
    size = len(ids) if layers_with_states(model.config) else CHUNK
    with rotated_for(model, len(ids)):
        for start in range(0, len(ids) - 1, size):
            stop = min(start + size, len(ids) - 1)
            output = model(input_ids=ids[None, start:stop], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            losses.append(cross_entropy(output.logits[0].float(), ids[start + 1 : stop + 1], reduction="none"))
    return torch.cat(losses).cpu()


def _buckets(window: int) -> list[tuple[int, int]]:
    """Ranges of the number of tokens before the predicted one: 1-63, 64-127, 128-255, ..."""
    edges = [1]
    while (edge := max(FIRST_BUCKET, edges[-1] * 2)) < window:
        edges.append(edge)
    return list(zip(edges, [*edges[1:], window], strict=True))


def _mean(values: Tensor) -> Estimate:
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate.with_error(float(values.mean()), error)


def exponential(loss: Estimate, value: float) -> Estimate:
    """A perplexity of this value with the interval of its loss."""
    if loss.low is None or loss.high is None:
        return Estimate(value)
    return Estimate(value, math.exp(loss.low), math.exp(loss.high))
