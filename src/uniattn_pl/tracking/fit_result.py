"""The measurements of a fit, as plain data that the manifest keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Z = 1.96  # of a 95 % interval
SMALLEST = 0.01  # nats: one percent of the perplexity
ORIGINAL, CONVERTED, INITIAL, STAGE1, STAGE2 = "original", "no_compensation", "initial", "stage1", "stage2"
LABELS = {
    ORIGINAL: "original",
    CONVERTED: "unified, no W_c",
    INITIAL: "after initialisation",
    STAGE1: "after stage 1",
    STAGE2: "after stage 2",
}


@dataclass(frozen=True)
class CacheCost:
    """KV-cache bytes of one sequence of `length` tokens: measured on a real cache, predicted, unmodified model."""

    length: int
    measured: int
    predicted: int
    unmodified: int

    @property
    def retain_rate(self) -> float:
        return self.measured / self.unmodified


@dataclass(frozen=True)
class LossDifference:
    """The loss of one model above another's on the same held-out rows, nats per response token.

    Attributes:
        value: above 0: the first model is worse.
        half: half of its 95 % interval over rows, each compared with itself; None: fewer than two rows, or not known.
        rows: compared.
    """

    value: float
    half: float | None
    rows: int

    @property
    def told(self) -> bool:
        """Whether these rows tell the models apart, by what anyone would notice: a hundredth of the perplexity."""
        return abs(self.value) > max(SMALLEST, self.half or 0.0)

    def __str__(self) -> str:
        return f"{self.value:.3f}" if self.half is None else f"{self.value:.3f} ± {self.half:.3f}"


@dataclass(frozen=True)
class Milestone:
    """Held-out quality of the model at one point of the fit; that of preferences where they are learned.

    Attributes:
        rows: summed loss and response tokens of each row; empty: written by a version that did not keep them.
    """

    name: str
    response_loss: float
    answer_accuracy: float | None
    preference_loss: float | None = None
    reward_accuracy: float | None = None
    perplexity: float | None = None
    rows: tuple[tuple[float, int], ...] = ()

    @classmethod
    def of(cls, name: str, quality: Mapping[str, Any]) -> Milestone:
        """What the manifest has of it; those of former versions have less."""
        pairs = quality.get("preferences") or {}
        accuracy = pairs.get("metrics", {}).get("rewards/accuracies")
        loss, answers = quality["response_loss"], quality["answer_accuracy"]
        rows = tuple((total, tokens) for total, tokens in quality.get("rows", ()))
        return cls(name, loss, answers, pairs.get("loss"), accuracy, quality.get("perplexity"), rows)

    @property
    def label(self) -> str:
        """The milestone in words."""
        return LABELS[self.name]

    def beyond(self, other: Milestone) -> LossDifference:
        """How much its loss is above another's, on the same rows."""
        difference = self.response_loss - other.response_loss
        if len(self.rows) < 2 or [tokens for _, tokens in self.rows] != [tokens for _, tokens in other.rows]:
            return LossDifference(difference, None, len(self.rows))
        pairs = [(mine - others, tokens) for (mine, tokens), (others, _) in zip(self.rows, other.rows, strict=True)]
        count, mean = len(pairs), sum(one for one, _ in pairs) / sum(tokens for _, tokens in pairs)
        squares = sum((one - mean * tokens) ** 2 for one, tokens in pairs)
        error = math.sqrt(squares * count / (count - 1)) / sum(tokens for _, tokens in pairs)
        return LossDifference(difference, Z * error, count)


@dataclass(frozen=True)
class HeldOutText:
    """What is said to a held-out row.

    Attributes:
        number: of the row, as `generate --row` takes it.
        asked, expected: the question and the answer of the row, in full.
        said: milestone -> the likeliest text, in the order of the fit.
    """

    number: int
    asked: str
    expected: str
    said: dict[str, str]

    @classmethod
    def of(cls, results: Iterable[Mapping[str, Any]]) -> tuple[HeldOutText, ...]:
        """Read what the phases of a fit have recorded; nothing where models said nothing to the same rows."""
        recorded = [phase["texts"] for phase in results if "texts" in phase]
        rows = recorded[0]["rows"] if recorded else []
        said = {name: texts for one in recorded if one["rows"] == rows for name, texts in one["said"].items()}
        order = [name for name in LABELS if name in said]
        return tuple(cls(**row, said={name: said[name][index] for name in order}) for index, row in enumerate(rows))


@dataclass(frozen=True)
class StageSummary:
    """Steps and speed of one training stage, and which of its weights it leaves.

    Attributes:
        kept_step: the step, counted within the stage, of the best weights; None: the last one's were to be kept.
        kept_loss: the held-out loss that was measured behind it.
    """

    name: str
    steps: int
    stopped_early: bool
    tokens_per_second: float | None
    step_seconds: float | None
    kept_step: int | None = None
    kept_loss: float | None = None

    @property
    def kept_words(self) -> str:
        """Which step its weights are of, in words."""
        if self.kept_step is None or self.kept_loss is None:
            return f"ends with the weights of step {self.steps}, its last"
        lowest = f"of the lowest held-out loss, {self.kept_loss:.4f}"
        return f"ends with the weights of step {self.kept_step} of {self.steps}, {lowest}"


@dataclass(frozen=True)
class FitResult:
    """A finished fit.

    Attributes:
        run_folder: holds the manifest and the model folders.
        model_folder: the final model, an ordinary Hugging Face folder.
        milestones: held-out quality, in order.
        cache: KV-cache bytes.
        stages: the stages that ran.
        mlflow_run_id: the run that has all of it.
        tracking_uri: where that run is, without credentials.
        texts: what the models say to the first held-out rows.
    """

    run_folder: Path
    model_folder: Path
    milestones: tuple[Milestone, ...]
    cache: CacheCost
    stages: tuple[StageSummary, ...] = field(default=())
    mlflow_run_id: str | None = None
    tracking_uri: str = ""
    texts: tuple[HeldOutText, ...] = ()

    @property
    def gap(self) -> LossDifference | None:
        """The loss that unification costs, before anything repairs it; None where both ends were not measured."""
        return self._difference(CONVERTED, ORIGINAL)

    @property
    def initialised(self) -> LossDifference | None:
        """What the initialisation took away of it, below 0 where it made it worse; None as of `gap`."""
        return self._difference(CONVERTED, INITIAL)

    @property
    def gap_closed(self) -> float | None:
        """Fraction of the gap which the initialisation wins back; None where there is no gap worth a fraction."""
        gap, initialised = self.gap, self.initialised
        if gap is None or initialised is None or not gap.told or gap.value < 0:
            return None
        return initialised.value / gap.value

    def _difference(self, name: str, other: str) -> LossDifference | None:
        found = {milestone.name: milestone for milestone in self.milestones}
        return found[name].beyond(found[other]) if {name, other} <= found.keys() else None

    @classmethod
    def from_results(cls, results: dict[str, dict[str, Any]], **places: Any) -> FitResult:
        """Read the results of a manifest's phases, some may be missing; `places` are its folders and its run."""
        quality: dict[str, dict[str, Any]] = {}
        for phase in results.values():
            quality.update(phase.get("milestones", {}))
        milestones = tuple(Milestone.of(name, quality[name]) for name in LABELS if name in quality)
        stages = tuple(StageSummary(**results[n]["stage"]) for n in (STAGE1, STAGE2) if "stage" in results.get(n, {}))
        cache, texts = CacheCost(**results["prepare"]["cache"]), HeldOutText.of(results.values())
        return cls(milestones=milestones, cache=cache, stages=stages, texts=texts, **places)
