"""The model of an evaluation, loaded once and only when something is left to measure, in all its variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from rich.console import Console

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.sections.data_section import PAPER
from uniattn_pl.data import prompt_ids
from uniattn_pl.data.chat_template import ChatTemplate, template_contents
from uniattn_pl.data.open_rows import data_module, rows_contents
from uniattn_pl.data.self_text import Original
from uniattn_pl.data.told_rows import tell_rows
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.dropping import check_drop, layers_to_drop
from uniattn_pl.evaluation.evaluation_results import Result, ResultFiles
from uniattn_pl.evaluation.open_server import OpenServer
from uniattn_pl.evaluation.subject import Subject
from uniattn_pl.evaluation.variants import IMPORTANCE, Variant, importance_result
from uniattn_pl.families.inspection import decoder_of
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.families.positions import beyond_positions, positions_of
from uniattn_pl.inference.device import trainer_device
from uniattn_pl.modeling.conversion.aliased_copy import aliased_copy
from uniattn_pl.modeling.conversion.convert import drop_attention, plan_of, unmodified_copy
from uniattn_pl.plan import LayerPlan, costs
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, TRAINING_ROWS, Contents, digests_of
from uniattn_pl.tracking.data_inputs import EVALUATION, DataInput, held_out_rows

IMPORTANCE_ROWS = 16  # of the training data


@dataclass(frozen=True)
class Part:
    """One task or probe.

    Attributes:
        settings: all that its results depend on besides the model.
        has_prompts: what H2O compresses; a part without is left out where the cache is compressed.
        longest: the config key that says how long its texts may be, and the tokens it allows; None: the task cuts them.
        scored: the rows it scores, None where it makes its texts itself.
    """

    name: str
    settings: dict[str, Any]
    measure: Callable[[Variant], list[Result]]
    has_prompts: bool = True
    longest: tuple[str, int] | None = None
    scored: DataInput | None = None


class LoadedModel:
    """The model to evaluate: loaded when first needed, in all variants, with the results that were kept before.

    Attributes:
        scored: name of each result measured so far -> the rows it is of.
    """

    def __init__(
        self,
        loaded: LoadedConfig,
        subject: Subject,
        console: Console,
        files: ResultFiles,
        server: OpenServer | None = None,
    ) -> None:
        self.loaded, self.subject, self.console, self.files, self.server = loaded, subject, console, files, server
        self.scored: dict[str, DataInput] = {}
        self._without, self.harness = cache(self._made_without), cache(self._made_harness)

    def check(self, variants: Sequence[Variant]) -> None:
        """Raise UserError, before anything is measured, when more layers are to be dropped than can be."""
        counts = [variant.dropped for variant in variants if variant.dropped is not None]
        if counts:
            check_drop(self._plan, counts)

    def measured(self, variant: Variant, parts: Sequence[Part]) -> list[Result]:
        """The results of all parts, named for the variant; what is kept is not measured again."""
        if variant.served:  # a server may serve another model tomorrow: what it says is not kept
            return self._from_server(variant, parts)
        results = []
        for part in (part for part in parts if part.has_prompts or variant.retain_rate is None):
            settings = self._settings(variant) | part.settings
            part_results = self.files.find(part.name, settings)
            if part_results is None:
                self._check_positions(parts)
                part_results = part.measure(variant)
                self.files.keep(part.name, settings, part_results)
            else:
                self._tell(f"{part.name}{variant.suffix}: measured before")
            results += self._named(part_results, part, variant)
        return results

    def _from_server(self, variant: Variant, parts: Sequence[Part]) -> list[Result]:
        """What a server says, and beside it what the model itself was measured to say, where that is kept."""
        results = []
        for part in parts:
            own = self.files.find(part.name, self._settings(Variant()) | part.settings) or []
            results += [*self._named(own, part, Variant()), *self._named(part.measure(variant), part, variant)]
        return results

    def _named(self, results: Sequence[Result], part: Part, variant: Variant) -> list[Result]:
        named = [replace(result, name=result.name + variant.suffix) for result in results]
        if part.scored is not None:
            self.scored |= dict.fromkeys((result.name for result in named), part.scored)
        return named

    def _check_positions(self, parts: Sequence[Part]) -> None:
        """Raise UserError, before anything is measured, with every key that allows texts beyond the positions."""
        positions = positions_of(self._loaded[0].config)
        longest = dict.fromkeys(part.longest for part in parts if part.longest is not None)
        problems = [problem for key, tokens in longest if (problem := beyond_positions(key, tokens, positions))]
        if problems:
            raise UserError(*problems)

    def of(self, variant: Variant) -> tuple[Any, Any]:
        """The variant's model, and the tokenizer."""
        model, tokenizer = self._loaded
        if variant.dropped is not None:
            return self._without(variant.dropped), tokenizer
        if variant.retain_rate is not None and not hasattr(decoder_of(model), "layer_plan"):
            model = unmodified_copy(model)
        return model, tokenizer

    def retain_rates(self, variants: Sequence[Variant]) -> dict[str, float]:
        """Suffix of each variant with dropped layers -> bytes of its cache over those of the unmodified model."""
        rates = {}
        for variant in variants:
            if variant.dropped is not None:
                plan = self._plan.drop_reuse(self._layers(variant.dropped), compensated=False)
                shape = shape_of(self._loaded[0].config)
                rates[variant.suffix] = costs.kv_retain_rate(plan, shape, length=costs.CACHE_LENGTH)
        return rates

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the subject is by content."""
        return self.subject.identity(self.loaded)

    @cached_property
    def contents(self) -> dict[str, Contents]:
        """The experiment's rows. Raises UserError where they cannot be read."""
        return rows_contents(self.loaded.config.data, self.original)

    @property
    def rows(self) -> dict[str, str]:
        """Digests of them."""
        return digests_of(self.contents)

    @property
    def held_out(self) -> DataInput:
        """Those that are held out, as MLflow is told of them."""
        contents = self.contents[HELD_OUT_ROWS]
        return held_out_rows(self.loaded.config.data, contents.digest, len(contents.labels), EVALUATION)

    @cached_property
    def row_template(self) -> dict[str, str]:
        """The digest of the chat template that rows are put into; nothing of the paper's prompt."""
        data = self.loaded.config.data
        return {} if data.template == PAPER else digests_of(template_contents(ChatTemplate.of(data, self.tokenizer)))

    @cached_property
    def original(self) -> Original:
        """The experiment's model, where rows of its data are text of it."""
        return Original(self.loaded.config.model, trainer_device(self.loaded.config))

    def _settings(self, variant: Variant) -> dict[str, Any]:
        settings: dict[str, Any] = {"model": self.identity, "h2o": variant.retain_rate}
        settings["prompts"] = prompt_ids.VERSION
        if variant.dropped is not None:
            settings["dropped"] = self._layers(variant.dropped)
        return settings

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, without the model."""
        return self.subject.load_tokenizer(self.loaded)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return self.subject.load(self.loaded)

    @property
    def _plan(self) -> LayerPlan:
        return plan_of(self._loaded[0])

    def _layers(self, count: int) -> list[int]:
        return layers_to_drop(self._plan, self._importance, count)

    def _made_without(self, count: int) -> Any:
        """The model without the attention, and the W_c, of this many layers; its weights are the model's own."""
        layers = self._layers(count)
        self._tell(f"without the attention of layers {', '.join(map(str, layers))}")
        return drop_attention(aliased_copy(self._loaded[0]), layers)

    def _made_harness(self, variant: Variant) -> Any:
        from uniattn_pl.evaluation.harness import harness_model

        size = self.loaded.config.evaluation.batch_size
        if self.server is not None:
            from uniattn_pl.evaluation.harness_server import ServedLM

            return ServedLM(self.server, self.tokenizer, concurrent=size)
        return harness_model(*self.of(variant), batch_size=size, retain_rate=variant.retain_rate)

    @cached_property
    def _importance(self) -> Result:
        config = self.loaded.config
        about = {"rows": self.rows[TRAINING_ROWS], "max_length": config.data.max_length, **self.row_template}
        settings = {"model": self.identity, "seed": config.seed, **about}
        results = self.files.find(IMPORTANCE, settings)
        if results is None:
            model, tokenizer = self._loaded
            sizes = {"batch_size": 1, "micro_batch_size": 1, "eval_batch_size": 1}
            data = data_module(config.data, tokenizer, seed=config.seed, original=self.original, **sizes)
            tell_rows(data.report, self.console)
            results = [importance_result(model, data.train_batches(IMPORTANCE_ROWS, 1))]
            self.files.keep(IMPORTANCE, settings, results)
        return results[0]

    def _tell(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
