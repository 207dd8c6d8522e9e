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
    parts = [_parts(row) for row in rows]
    pairs = [pair for of_row in parts for pair in of_row]
    longest = max(len(before) + len(after) for before, after in pairs)
    if longest > model.max_length:
        raise UserError(
            f"data.max_length: a held-out row has {longest} tokens, and the server takes {model.max_length} of a text."
        )
    logs = iter(model.likelihoods(pairs))
    losses = [(-sum(next(logs)[0] for _ in of_row), sum(len(after) for _, after in of_row)) for of_row in parts]
    loss = Estimate.ratio(losses)
    figures = {"response_loss": loss, "perplexity": exponential(loss, math.exp(loss.value))}
    details = [{"row": i, "loss": total / count, "tokens": count} for i, (total, count) in enumerate(losses)]
    return Result("held_out", len(losses), figures, details)


def _parts(row: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Of each run of scored ids all that is before it, one id at least, and the run."""
    ids = row["input_ids"][row["attention_mask"].bool()].tolist()
    labels = row["labels"][row["attention_mask"].bool()].tolist()
    is_scored = [False, *(label != IGNORED for label in labels[1:]), False]
    changes = [index for index in range(1, len(is_scored)) if is_scored[index] != is_scored[index - 1]]
    return [(ids[:start], ids[start:end]) for start, end in zip(changes[::2], changes[1::2], strict=True)]
