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

from uniattn_pl.data.prompt_ids import prefix_ids, text_ids
from uniattn_pl.display.notices import tell_once
from uniattn_pl.evaluation.evaluation_results import Estimate, Result
from uniattn_pl.evaluation.harness_prompts import OwnPrompts
from uniattn_pl.evaluation.harness_server import ServedLM
from uniattn_pl.evaluation.likelihood import continuation_likelihoods
from uniattn_pl.evaluation.tasks import OpenTask, shots_of, task_manager
from uniattn_pl.modeling.caches.h2o_cache import H2OCache
from uniattn_pl.modeling.decoding import own_defaults

PROPORTIONS = ("acc", "acc_norm", "exact_match")  # means of zeros and ones
DEFAULT_FILTER = "none"


class ProductHFLM(OwnPrompts, HFLM):
    """The harness's hf model with this package's prompts (`data/prompt_ids.py`) and decoding (`modeling/decoding.py`).

    The same numbers wherever the tokenizer only ever begins a text and the checkpoint has no generation defaults. The
    harness's own lose the first token of every answer where a tokenizer closes texts with EOS, score BOS behind BOS in
    whole texts, and take penalties from a generation config. `cut` counts prompts that lost their beginning.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.prefix, self.cut = prefix_ids(self.tokenizer), 0

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """The ids of a prompt, or of bare text where the harness asks for no special tokens."""
        ids = ([] if add_special_tokens is False else self.prefix) + text_ids(self.tokenizer, [string])[0]
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask [B, L] of prompts, padded on the left; the longest lose their beginning."""
        encoded = [self.tok_encode(string) for string in strings]
        if left_truncate_len:
            self.cut += sum(len(ids) > left_truncate_len for ids in encoded)
            encoded = [ids[-left_truncate_len:] for ids in encoded]
        longest = max(map(len, encoded))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in encoded])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in encoded])
        return ids, mask

    @property
    def _most_new_tokens(self) -> int:
        return int(self.max_gen_toks)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        self.cut += sum(len(context) + len(answer) > self.max_length + 1 for _, context, answer in requests)
        return self._score(requests, disable_tqdm, override_bs)

    def _score(self, requests: list[Any], disable_tqdm: bool, override_bs: int | None) -> list[tuple[float, bool]]:
        scores: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        return scores

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
        with own_defaults(self.model, self.tokenizer):
            return super()._model_generate(context, max_length, stop, **options)


class CompressedHFLM(ProductHFLM):
    """The same, but every answer is read from a cache that H2O has compressed after the prompt."""

    def __init__(self, *args: Any, retain_rate: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.retain_rate = retain_rate

    def _score(self, requests: list[Any], disable_tqdm: bool, override_bs: int | None) -> list[tuple[float, bool]]:
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
) -> ProductHFLM:
    """Wrap a loaded model for the harness; with `retain_rate` it must have this package's attention."""
    options: dict[str, Any] = {"pretrained": model, "tokenizer": tokenizer, "batch_size": batch_size}
    return ProductHFLM(**options) if retain_rate is None else CompressedHFLM(retain_rate=retain_rate, **options)


def score_task(
    model: ProductHFLM | ServedLM, task: OpenTask, rows: dict[str, list[int]], num_fewshot: int | None
) -> list[Result]:
    """Score a task's rows; a group gives a result of its own besides those of its tasks.

    Args:
        model: from `harness_model`, or a server's.
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
    model.cut = 0
    output = lm_eval.evaluate(model, task_manager().load(task.objects), samples=rows)
    if model.cut:
        tell_once(
            f"{task.name}: {model.cut} prompts have more tokens than the model has positions ({model.max_length}), "
            "and lost their beginning."
        )
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
