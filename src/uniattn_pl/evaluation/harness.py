"""A task scored by lm-evaluation-harness itself: its prompts, its model class, its metrics."""

from __future__ import annotations

import random
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uniattn_pl.evaluation.evaluation_results import Estimate, Result
from uniattn_pl.evaluation.likelihood import continuation_likelihoods
from uniattn_pl.evaluation.tasks import OpenTask, shots_of, task_manager
from uniattn_pl.modeling.caches.h2o_cache import H2OCache

PROPORTIONS = ("acc", "acc_norm", "exact_match")  # means of zeros and ones
DEFAULT_FILTER = "none"


class CompressedHFLM(HFLM):
    """The harness's hf model, but every answer is read from a cache that H2O has compressed after the prompt."""

    def __init__(self, *args: Any, retain_rate: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.retain_rate = retain_rate

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """One prompt at a time; its answers, which come one after another, are scored after one prefill."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            fitting = tuple(context[-(self.max_length + 1 - len(continuation)) :])
            groups.setdefault(fitting, []).append(index)
        answered: dict[int, tuple[float, bool]] = {}
        for context, indices in tqdm(groups.items(), disable=disable_tqdm):
            answers = [requests[index][2] for index in indices]
            scores = continuation_likelihoods(self.model, context, answers, retain_rate=self.retain_rate)
            answered.update({i: (score.log, score.greedy) for i, score in zip(indices, scores, strict=True)})
        return [answered[index] for index in range(len(requests))]

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
        cache = H2OCache(self.model, self.retain_rate)
        return super()._model_generate(context, max_length, stop, past_key_values=cache, **options)


def harness_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, retain_rate: float | None
) -> HFLM:
    """Wrap a loaded model for the harness; with `retain_rate` it must have this package's attention."""
    options: dict[str, Any] = {"pretrained": model, "tokenizer": tokenizer, "batch_size": batch_size}
    return HFLM(**options) if retain_rate is None else CompressedHFLM(retain_rate=retain_rate, **options)


def score_task(model: HFLM, task: OpenTask, rows: dict[str, list[int]], num_fewshot: int | None) -> list[Result]:
    """Score a task's rows; a group gives a result of its own besides those of its tasks.

    Args:
        model: from `harness_model`.
        task: from `open_task`.
        rows: per task, ascending: the harness numbers them in the order of the split.
        num_fewshot: examples in each prompt; None: as the task says.
    """
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    for single in task.tasks.values():
        single.set_config(key="num_fewshot", value=shots_of(single, num_fewshot))
        single.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    # not simple_evaluate: it asks the hub, git and pip about everything around
    output = lm_eval.evaluate(model, task_manager().load(task.objects), samples=rows)
    counts = output["n-samples"]
    total = sum(count["effective"] for count in counts.values())
    return [
        _result(name, metrics, counts[name]["effective"] if name in counts else total, output["samples"].get(name, []))
        for name, metrics in output["results"].items()
        if any("," in key for key in metrics)
    ]


def _result(name: str, metrics: dict[str, Any], count: int, samples: list[dict[str, Any]]) -> Result:
    """The harness's `metric,filter` and `metric_stderr,filter` pairs as figures."""
    figures = {}
    for key, value in metrics.items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = metrics.get(f"{metric}_stderr,{kind}")
        label = metric if kind == DEFAULT_FILTER else f"{metric}_{kind}"
        is_proportion = metric in PROPORTIONS and samples
        figures[label] = (
            Estimate.proportion(value, count)
            if is_proportion
            else Estimate.with_error(value, error if isinstance(error, int | float) else None)
        )
    details = [
        {"row": sample["doc_id"]} | {m: sample[m] for m in sample["metrics"] if isinstance(sample[m], int | float)}
        for sample in samples
    ]
    return Result(name, count, figures, details)
