"""Held-out loss of a model behind a server, from its log-probabilities of the rows' own tokens."""

from __future__ import annotations

import math
from typing import Any

from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.evaluation_results import Estimate, Result
from uniattn_pl.evaluation.harness_server import ServedLM
from uniattn_pl.evaluation.probes import exponential
from uniattn_pl.losses.response_loss import IGNORED


def served_held_out(model: ServedLM, rows: list[dict[str, Any]]) -> Result:
    """As `probes.held_out`: loss (nats per response token) and perplexity, intervals over rows.

    Args:
        model: the server.
        rows: batches of one sequence: input_ids, attention_mask and labels [1, L], -100 where not scored.

    Raises:
        UserError: the server takes no texts as long as these rows.
    """
    pairs = [_halves(row) for row in rows]
    longest = max(len(before) + len(after) for before, after in pairs)
    if longest > model.max_length:
        raise UserError(
            f"data.max_length: a held-out row has {longest} tokens, and the server takes {model.max_length} of a text."
        )
    sums = [-log for log, _ in model.likelihoods(pairs)]
    losses = [(total, len(after)) for total, (_, after) in zip(sums, pairs, strict=True)]
    loss = Estimate.ratio(losses)
    figures = {"response_loss": loss, "perplexity": exponential(loss, math.exp(loss.value))}
    details = [{"row": i, "loss": total / count, "tokens": count} for i, (total, count) in enumerate(losses)]
    return Result("held_out", len(losses), figures, details)


def _halves(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The ids before the scored ones, one at least, and the scored ones, which end a row."""
    ids = row["input_ids"][row["attention_mask"].bool()].tolist()
    labels = row["labels"][row["attention_mask"].bool()].tolist()
    first = max(1, next(index for index, label in enumerate(labels) if label != IGNORED))
    return ids[:first], ids[first:]
