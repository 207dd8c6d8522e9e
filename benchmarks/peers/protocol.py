"""What is measured of every method, in every environment: this file imports torch and nothing of the package.

A prompt is read in one forward, the cache is compressed if the method does that, and what follows is read from what
is left. Positions are the true ones, whatever was given up. Logits are those of the last position only, made from
the decoder's output, so that every version of transformers computes as many of them.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

TIMED = ("ttft_s", "tpot_s")
WARM_UP_TOKENS = 96  # more than the window that SnapKV wants


@dataclass
class Method:
    """A model, the cache it is given, and what compresses that.

    Attributes:
        name: in the tables.
        model: a causal language model of transformers, its decoder in `model`.
        new_cache: makes an empty cache; None is what the model makes itself.
        press: entered around the forward of a prompt.
        shared: passed to every forward of the decoder.
        shallow: a copy of the cache may share its tensors, since the cache never writes into them.
        note: what a reader of the table has to know.
    """

    name: str
    model: Any
    new_cache: Callable[[], Any] = lambda: None
    press: Callable[[], AbstractContextManager[Any]] = nullcontext
    shared: dict[str, Any] = field(default_factory=dict)
    shallow: bool = False
    note: str = ""


@dataclass
class Reading:
    """A cache, and how many tokens were read into it."""

    cache: Any
    seen: int


@torch.no_grad()
def begin(method: Method, ids: Sequence[int]) -> tuple[torch.Tensor, Reading]:
    """Read a prompt and compress its cache; the last token's logits [V], and the reading to go on from."""
    with method.press():
        hidden, cache = _decode(method, ids, method.new_cache(), 0)
    return _logits(method, hidden[-1:])[0], Reading(cache, len(ids))


@torch.no_grad()
def read_on(method: Method, reading: Reading, ids: Sequence[int]) -> torch.Tensor:
    """Read tokens behind what the cache holds, which grows by them; their logits [L, V]."""
    hidden, reading.cache = _decode(method, ids, reading.cache, reading.seen)
    reading.seen += len(ids)
    return _logits(method, hidden)


def _decode(method: Method, ids: Sequence[int], cache: Any, seen: int) -> tuple[torch.Tensor, Any]:
    output = method.model.model(
        input_ids=torch.tensor([list(ids)]),
        position_ids=torch.arange(seen, seen + len(ids))[None],
        past_key_values=cache,
        use_cache=True,
        **method.shared,
    )
    return output.last_hidden_state[0], output.past_key_values


def _logits(method: Method, hidden: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = method.model.lm_head(hidden)
    return logits.float()


def fork(method: Method, reading: Reading) -> Reading:
    """A reading that goes its own way from here."""
    if isinstance(reading.cache, tuple):
        return Reading(reading.cache, reading.seen)
    if not method.shallow:
        return copy.deepcopy(reading)
    cache = copy.copy(reading.cache)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    return Reading(cache, reading.seen)


def held_bytes(cache: Any) -> int:
    """Bytes of the tensors that a cache holds for its tokens, scales of quantised ones among them.

    Of the caches of all versions: layers with keys and values, two lists, or pairs in a tuple.
    """
    if isinstance(cache, tuple):
        held: Any = cache
    elif hasattr(cache, "layers"):
        names = ("keys", "values", "_quantized_keys", "_quantized_values")
        held = [getattr(layer, name, None) for layer in cache.layers for name in names]
    else:
        held = [cache.key_cache, cache.value_cache]
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(held))


def _tensors(held: Any) -> Iterator[torch.Tensor]:
    if isinstance(held, torch.Tensor):
        if hasattr(held, "__tensor_flatten__"):  # quanto's, which are made of others
            yield from _tensors([getattr(held, name) for name in held.__tensor_flatten__()[0]])
        else:
            yield held
    elif isinstance(held, Mapping):
        yield from _tensors(list(held.values()))
    elif isinstance(held, list | tuple):
        for part in held:
            yield from _tensors(part)


def response_loss(method: Method, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean cross-entropy of response tokens (nats) after their compressed prompts; its standard error over rows.

    Args:
        rows: `ids` of prompt and response, and `prompt`: how many are the prompt's.
    """
    losses, cached = [], 0
    for row in rows:
        ids, start = row["ids"], row["prompt"]
        last, reading = begin(method, ids[:start])
        cached += held_bytes(reading.cache)
        logits = last[None]
        if len(ids) > start + 1:
            logits = torch.cat([logits, read_on(method, reading, ids[start:-1])])
        each = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:]), reduction="none")
        losses.append((float(each.sum()), len(each)))
    tokens = sum(count for _, count in losses)
    mean = sum(total for total, _ in losses) / tokens
    return {
        "loss": mean,
        "standard_error": _ratio_error(losses, mean),
        "by_row": [total / count for total, count in losses],
        "rows": len(rows),
        "tokens": tokens,
        "bytes_per_prompt_token": cached / sum(row["prompt"] for row in rows),
    }


def _ratio_error(losses: Sequence[tuple[float, int]], mean: float) -> float:
    """Of a ratio of sums over rows, which are drawn together."""
    if len(losses) < 2:
        return float("nan")
    tokens = sum(count for _, count in losses) / len(losses)
    spread = statistics.variance([total - mean * count for total, count in losses])
    return float((spread / len(losses)) ** 0.5 / tokens)


def retrieval(method: Method, questions: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By kind and length, how often the right answer is the likeliest of its candidates.

    The prompt's last token runs with the answer, so that also one of a single token is read from the compressed cache.

    Args:
        questions: `group`, `prompt` (ids) and `answers` (ids of each, the right one first).
    """
    right: dict[str, list[bool]] = {}
    for question in questions:
        *prompt, last = question["prompt"]
        _, reading = begin(method, prompt)
        scores = []
        for answer in question["answers"]:
            logits = read_on(method, fork(method, reading), [last, *answer[:-1]])
            scores.append(float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()))
        right.setdefault(question["group"], []).append(max(range(len(scores)), key=scores.__getitem__) == 0)
    return {group: {"right": sum(found), "trials": len(found)} for group, found in right.items()}


def times(
    methods: Sequence[Method], prompt: Sequence[int], *, new_tokens: int, rounds: int, report: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """Time to the first token and per further token, in rounds of all methods in an order that rotates.

    TTFT is the prompt's forward, what compresses its cache, and the first argmax; TPOT the rest of the time over the
    further tokens. Each method runs once before, over fewer tokens, which is not counted.
    """
    samples: dict[str, list[dict[str, Any]]] = {method.name: [] for method in methods}
    for method in methods:
        _timed(method, prompt[:WARM_UP_TOKENS], 2)
    for number in range(rounds):
        for offset in range(len(methods)):
            method = methods[(number + offset) % len(methods)]
            report(f"{method.name}, {len(prompt)} tokens, round {number + 1} of {rounds}")
            samples[method.name].append(_timed(method, prompt, new_tokens))
    return samples


def _timed(method: Method, prompt: Sequence[int], new_tokens: int) -> dict[str, Any]:
    start = time.perf_counter()
    logits, reading = begin(method, prompt)
    token = int(logits.argmax())
    first = time.perf_counter()
    held = held_bytes(reading.cache)
    resumed = time.perf_counter()
    for _ in range(new_tokens - 1):
        token = int(read_on(method, reading, [token])[-1].argmax())
    end = time.perf_counter()
    return {"ttft_s": first - start, "tpot_s": (end - resumed) / (new_tokens - 1), "held_bytes": held}
