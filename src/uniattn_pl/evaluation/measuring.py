"""The model of an evaluation, loaded once and only when something is left to measure, in all its variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.console import Console

from uniattn_pl.config import LoadedConfig
from uniattn_pl.data import InstructionDataModule
from uniattn_pl.evaluation.results import Result, ResultFiles
from uniattn_pl.evaluation.subject import Subject
from uniattn_pl.evaluation.variants import (
    IMPORTANCE,
    Variant,
    importance_result,
    layers_to_drop,
    retain_rate_of,
    with_dropped,
)
from uniattn_pl.modeling import unmodified_copy

IMPORTANCE_ROWS = 16  # of the training data


@dataclass(frozen=True)
class Part:
    """One task or probe.

    Attributes:
        settings: all that its results depend on besides the model.
        has_prompts: what H2O compresses; a part without is left out where the cache is compressed.
    """

    name: str
    settings: dict[str, Any]
    measure: Callable[[Variant], list[Result]]
    has_prompts: bool = True


class LoadedModel:
    """What is evaluated, its variants, and what of them was measured before.

    Attributes:
        retain_rates: suffix of a variant with less cache -> its share of the unmodified model's bytes.
    """

    def __init__(self, loaded: LoadedConfig, subject: Subject, console: Console, files: ResultFiles) -> None:
        self.loaded, self.subject, self.console, self.files = loaded, subject, console, files
        self.retain_rates: dict[str, float] = {}
        self._dropped: tuple[int, Any] | None = None

    def measured(self, variant: Variant, parts: Sequence[Part]) -> list[Result]:
        """The results of all parts, named for the variant; what is kept is not measured again."""
        results = []
        for part in (part for part in parts if part.has_prompts or variant.retain_rate is None):
            settings = self._settings(variant) | part.settings
            found = self.files.find(part.name, settings)
            if found is None:
                found = part.measure(variant)
                self.files.keep(part.name, settings, found)
            else:
                self._tell(f"{part.name}{variant.suffix}: measured before")
            results += [result.renamed(result.name + variant.suffix) for result in found]
        if variant.dropped is not None:
            self.retain_rates[variant.suffix] = retain_rate_of(self.of(variant)[0])
        return results

    def of(self, variant: Variant) -> tuple[Any, Any]:
        """The variant's model, and the tokenizer."""
        model, tokenizer = self._loaded
        if variant.dropped is not None:
            return self._without(variant.dropped), tokenizer
        if variant.retain_rate is not None and not hasattr(model.get_decoder(), "layer_plan"):
            model = unmodified_copy(model)
        return model, tokenizer

    def _settings(self, variant: Variant) -> dict[str, Any]:
        settings: dict[str, Any] = {"model": self.subject.identity(self.loaded), "h2o": variant.retain_rate}
        if variant.dropped is not None:
            settings["dropped"] = layers_to_drop(self._plan, self._importance, variant.dropped)
        return settings

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return self.subject.load(self.loaded)

    @property
    def _plan(self) -> Any:
        from uniattn_pl.plan import LayerPlan

        model = self._loaded[0]
        return getattr(model, "layer_plan", None) or LayerPlan.unmodified(model.config.num_hidden_layers)

    def _without(self, count: int) -> Any:
        if self._dropped is None or self._dropped[0] != count:
            layers = layers_to_drop(self._plan, self._importance, count)
            self._tell(f"without the attention of layers {', '.join(map(str, layers))}")
            self._dropped = count, with_dropped(self._loaded[0], layers)
        return self._dropped[1]

    @cached_property
    def _importance(self) -> Result:
        config = self.loaded.config
        settings = {"model": self.subject.identity(self.loaded), "data": vars(config.data), "seed": config.seed}
        found = self.files.find(IMPORTANCE, settings)
        if found is None:
            model, tokenizer = self._loaded
            sizes = {"batch_size": 1, "micro_batch_size": 1, "eval_batch_size": 1}
            data = InstructionDataModule(config.data, tokenizer, seed=config.seed, **sizes)
            data.setup()
            found = [importance_result(model, data.train_batches(IMPORTANCE_ROWS, 1))]
            self.files.keep(IMPORTANCE, settings, found)
        return found[0]

    def _tell(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
