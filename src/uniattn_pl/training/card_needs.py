"""What an experiment needs of each card, whether that fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from uniattn_pl.calibration.device_copies import STREAMS_SHARE
from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.calibration_section import CalibrationConfig
from uniattn_pl.config.sections.training_section import LoraConfig, TrainingConfig
from uniattn_pl.display.text_table import bytes_text
from uniattn_pl.kernels.map_memory import CHUNK_WITHOUT_MAPS
from uniattn_pl.modeling.loading.dtypes import resolve_dtype
from uniattn_pl.modeling.loading.layer_offload import CAPACITY
from uniattn_pl.plan import LayerPlan, ModelShape, costs
from uniattn_pl.plan.card_rates import GIB, USABLE_MEMORY
from uniattn_pl.plan.forward_memory import CalibrationMemory, calibration_memory, inference_memory
from uniattn_pl.plan.optimizer_memory import ADAMW_8BIT
from uniattn_pl.training.memory_estimate import MODEL_FRACTION, WEIGHT_DTYPES, stage_memory

MOST_CARDS = 1024


@dataclass(frozen=True)
class CardNeed:
    """One line: what is done, the bytes it needs of each card, and what would make it fit where it does not.

    Attributes:
        remedy: overrides of the config, or words; empty where it fits.
        note: what it needs elsewhere.
    """

    what: str
    needed: int
    fits: bool
    remedy: str = ""
    note: str = ""


@dataclass(frozen=True)
class Cards:
    """Cards of one kind: how many, and the bytes of each."""

    count: int
    memory: int

    def hold(self, needed: int) -> bool:
        """Whether an estimate leaves the card the room that it needs besides."""
        return needed <= USABLE_MEMORY * self.memory


def card_needs(
    config: ExperimentConfig, plan: LayerPlan, shape: ModelShape, cards: Cards, *, batch_size: int, lengths: list[int]
) -> Iterator[CardNeed]:
    """Calibration, both stages, low-rank updates and inference at each length, in the order of a fit."""
    if plan.compensated:
        yield _calibration(config, plan, shape, cards)
        yield _stage("stage 1 (W_c)", 1, config, plan, shape, cards)
    lora = config.training.lora
    whole, updates = (_with_lora(config, enabled=enabled) for enabled in (False, True))
    yield _stage("stage 2 (all weights)", 2, whole, plan, shape, cards)
    yield _stage(f"stage 2 (LoRA, rank {lora.rank})", 2, updates, plan, shape, cards)
    yield from (_inference(config, plan, shape, cards, batch_size, length) for length in lengths)


def _with_lora(config: ExperimentConfig, *, enabled: bool) -> ExperimentConfig:
    lora: LoraConfig = replace(config.training.lora, enabled=enabled)
    return _trained_with(config, lora=lora)


def _trained_with(config: ExperimentConfig, **options: Any) -> ExperimentConfig:
    training: TrainingConfig = replace(config.training, **options)
    return replace(config, training=training)


def _stage(
    what: str, stage: int, config: ExperimentConfig, plan: LayerPlan, shape: ModelShape, cards: Cards
) -> CardNeed:
    def needed(options: dict[str, Any], count: int = cards.count) -> int:
        return stage_memory(_trained_with(config, **options), plan, shape, stage=stage, num_devices=count).total

    configured = needed({})
    if cards.hold(configured):
        return CardNeed(what, configured, fits=True)
    return CardNeed(what, configured, fits=False, remedy=_remedy(config.training, needed, cards))


def _remedy(training: TrainingConfig, needed: Callable[..., int], cards: Cards) -> str:
    """The fewest options that fit on these cards, those first that change no result; and how many cards fit without."""
    found: list[str] = []
    options: dict[str, Any] = {}
    for option, value in _savings(training):
        options[option] = value
        if cards.hold(needed(options)):
            for other in [name for name in options if name != option]:
                rest = {name: kept for name, kept in options.items() if name != other}
                options = rest if cards.hold(needed(rest)) else options
            found.append(_overrides(options))
            break
    exact = {option: value for option, value in _savings(training) if option != "precision"}
    for kept in () if training.optimizer == ADAMW_8BIT else ({}, exact):  # whose states are not sharded
        count = next((n for n in _counts(cards.count) if cards.hold(needed(kept, n))), None)
        if count is not None:
            words = f"{count} cards (training.strategy=fsdp)"
            found.append(words if not kept else f"{words} with {_overrides(kept)}")
            break
    nothing = "another optimizer" if training.optimizer == ADAMW_8BIT else f"nothing on {MOST_CARDS} cards"
    return "; or ".join(found) or nothing


def _savings(training: TrainingConfig) -> Iterator[tuple[str, Any]]:
    """Options that need less memory and are not set: the ones that only take time before the one that rounds."""
    if training.micro_batch_size > 1:
        yield "micro_batch_size", 1
    if not training.gradient_checkpointing:
        yield "gradient_checkpointing", True
    if not training.chunked_loss:
        yield "chunked_loss", True
    if training.precision != "bf16-true":
        yield "precision", "bf16-true"


def _counts(present: int) -> Iterator[int]:
    count = 2
    while count <= MOST_CARDS:
        if count > present:
            yield count
        count *= 2


def _overrides(options: dict[str, Any]) -> str:
    return " ".join(f"training.{name}={str(value).lower()}" for name, value in options.items())


def _calibration(config: ExperimentConfig, plan: LayerPlan, shape: ModelShape, cards: Cards) -> CardNeed:
    """Ranks divide the rows; each has the models, and streams of its own."""
    options = config.calibration
    memory = _pass(config, options, plan, shape, cards)
    on_device, in_memory, in_files = stream_places(memory, options, cards.memory)
    places = ((on_device, "on the card"), (in_memory, "in main memory"), (in_files, "in files"))
    kept = ", ".join(f"{bytes_text(size)} {place}" for size, place in places if size)
    need = CardNeed(
        f"calibration, {options.num_samples} rows of {config.data.max_length} tokens",
        memory.on_device + on_device,
        fits=cards.hold(memory.on_device + on_device),
        note=f"Hidden streams of calibration, at most: {kept}",
    )
    if need.fits:
        return need
    smaller = replace(options, batch_size=1, device_memory_limit_gib=0.0)
    fits = cards.hold(_pass(config, smaller, plan, shape, cards).on_device)
    words = "calibration.batch_size=1 calibration.device_memory_limit_gib=0" if fits else "a larger card"
    return replace(need, remedy=words)


def _pass(
    config: ExperimentConfig, options: CalibrationConfig, plan: LayerPlan, shape: ModelShape, cards: Cards
) -> CalibrationMemory:
    element = resolve_dtype(WEIGHT_DTYPES.get(config.training.precision, config.model.dtype)).itemsize
    memory = calibration_memory(
        plan,
        shape,
        sequences=-(-options.num_samples // cards.count) + -(-options.held_out_samples // cards.count),
        batch_size=options.batch_size,
        length=config.data.max_length,
        element_bytes=element,
        initialiser=options.initialiser,
    )
    unmodified = LayerPlan.stock(shape)
    if costs.parameters(unmodified, shape) * element <= MODEL_FRACTION * cards.memory:
        return memory
    layers = zip(plan.rows, shape.layers, strict=True)
    largest = max(costs.layer_parameters(row, layer, shape) for row, layer in layers)
    return replace(memory, weights=(shape.embedding + CAPACITY * largest) * element)  # the layers visit the card


def stream_places(memory: CalibrationMemory, options: CalibrationConfig, card: int) -> tuple[int, int, int]:
    """Bytes of hidden streams on the card, in main memory and in files."""
    limit = options.device_memory_limit_gib
    room = max(STREAMS_SHARE * (card - memory.weights), 0) if limit is None else limit * GIB
    on_device = min(memory.streams, int(room))
    in_memory = min(memory.streams - on_device, int(options.memory_limit_gib * GIB))
    return on_device, in_memory, memory.streams - on_device - in_memory


def _inference(
    config: ExperimentConfig, plan: LayerPlan, shape: ModelShape, cards: Cards, batch_size: int, length: int
) -> CardNeed:
    element = resolve_dtype(config.model.dtype).itemsize

    def needed(sequences: int) -> int:
        sizes = {"length": length, "chunk": CHUNK_WITHOUT_MAPS, "element_bytes": element}
        return inference_memory(plan, shape, batch_size=sequences, **sizes).total

    words = f"inference, {batch_size} x {length} tokens"
    if cards.hold(needed(batch_size)):
        return CardNeed(words, needed(batch_size), fits=True)
    most = 0
    while cards.hold(needed(most + 1)):
        most += 1
    remedy = f"--batch-size {most}" if most else "a larger card"
    return CardNeed(words, needed(batch_size), fits=False, remedy=remedy)
