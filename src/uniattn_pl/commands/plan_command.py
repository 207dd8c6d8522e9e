"""`plan`: the layer plan of an experiment, drawn, with its costs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from uniattn_pl.commands.arguments import Parser, add_config_arguments, load, whole_number
from uniattn_pl.commands.predicted_table import print_predicted
from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.plain_layer import PLACES
from uniattn_pl.display.text_table import bytes_text, count_text, print_table, print_text
from uniattn_pl.errors import UserError
from uniattn_pl.inference.compensation_table import print_compensation
from uniattn_pl.plan import LayerPlan, ModelShape, costs
from uniattn_pl.plan.card_rates import CARDS, DEFAULT_MEMORY_GIB, GIB, USABLE_MEMORY, find_card, memory_bytes
from uniattn_pl.plan.drawing import draw
from uniattn_pl.plan.optimizer_memory import ADAMW_8BIT
from uniattn_pl.training.planning import compile_plan

if TYPE_CHECKING:
    import torch

DESCRIPTION = """\
Draws which layer computes its attention map and which uses another's, and computes what this costs: cache,
parameters, FLOPs, memory, and what fits on a card. Loads no weights."""
SHOWS_TABLES = True
EXAMPLE = """\
  uniattn-pl plan --config quickstart
  uniattn-pl plan architecture=cla architecture.num_superblocks=2 --length 32768 --batch-size 8
  uniattn-pl plan --config configs/model/llama-3.1-8b.yaml --length 8192 --batch-size 8 --card h100
  uniattn-pl plan --config experiments/scale/llama-3.1-8b_8gpus.yaml --gpus 8 --gpu-memory 40"""
LENGTHS = (1024, 8192, 65536)
UNREAD = [key for key in PLACES if key != "model.source"]
"""Places of which a plan needs nothing: it is drawn on a machine without them, too."""


def add_arguments(parser: Parser) -> None:
    """Add the options of `plan`."""
    add_config_arguments(parser, dry_run=False)
    parser.add_argument(
        "--length",
        type=whole_number,
        action="append",
        metavar="TOKENS",
        help=f"may be repeated; default: {', '.join(map(str, LENGTHS))}",
    )
    parser.add_argument(
        "--batch-size", type=whole_number, default=1, metavar="B", help="sequences of cache and FLOPs; default: 1"
    )
    parser.add_argument(
        "--gpus",
        type=whole_number,
        default=1,
        metavar="N",
        help="devices that divide the weights in training; default: 1",
    )
    parser.add_argument(
        "--card", metavar="CARD", help="predict times on a card, and what fits on it; one of " + ", ".join(CARDS)
    )
    parser.add_argument(
        "--gpu-memory",
        metavar="GIB",
        help=f"what fits on so much, or on a card of this name; default: --card's, or {DEFAULT_MEMORY_GIB}",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the drawing and the cost tables."""
    loaded = load(arguments, unread=UNREAD)
    if arguments.print_config:
        print(loaded.to_yaml(), end="")
        return 0
    lengths = arguments.length or list(LENGTHS)
    if min(*lengths, arguments.batch_size, arguments.gpus) < 1:
        raise UserError("--length, --batch-size and --gpus must be at least 1.")
    card = None if arguments.card is None else find_card(arguments.card)
    memory = int((DEFAULT_MEMORY_GIB if card is None else card[1].memory_gib) * GIB)
    if arguments.gpu_memory is not None:
        memory = memory_bytes(arguments.gpu_memory)
    plan, shape = compile_plan(loaded)
    print(f"{loaded.architecture.name} on {loaded.config.model.source}: {shape.model_type}, {shape.num_layers} layers")
    print(draw(plan) + "\n")
    _print_inference(plan, shape, lengths, arguments.batch_size, _dtype(loaded))
    print_compensation({loaded.architecture.name: plan}, shape)
    if card is not None:
        if shape.encoder is not None:
            from uniattn_pl.families.encoder_decoder import decoders_alone

            raise UserError(decoders_alone("--card", shape.model_type))
        print_predicted(plan, shape, lengths, arguments.batch_size, *card)
    _print_training(plan, shape, loaded, arguments.gpus)
    _print_fits(plan, shape, loaded, arguments, memory)
    return 0


def _dtype(loaded: LoadedConfig) -> torch.dtype:
    from uniattn_pl.modeling.loading.dtypes import resolve_dtype

    return resolve_dtype(loaded.config.model.dtype)


def _print_inference(
    plan: LayerPlan, shape: ModelShape, lengths: list[int], batch_size: int, dtype: torch.dtype
) -> None:
    unmodified = LayerPlan.stock(shape)
    rows = []
    for length in lengths:
        caches = [
            costs.kv_cache_bytes(p, shape, batch_size=batch_size, length=length, bytes_per_element=dtype.itemsize)
            for p in (plan, unmodified)
        ]
        prefill = [costs.prefill_flops(p, shape, batch_size=batch_size, length=length) for p in (plan, unmodified)]
        decode = [costs.decode_flops(p, shape, batch_size=batch_size, length=length) for p in (plan, unmodified)]
        rate = costs.kv_retain_rate(plan, shape, length=length)
        rows.append(
            (
                str(length),
                bytes_text(caches[0]),
                bytes_text(caches[1]),
                f"{rate:.1%}",
                *_with_ratio(prefill),
                *_with_ratio(decode),
            )
        )
    columns = ("length", "KV cache", "unmodified", "retained", "prefill FLOPs", "ratio", "decode FLOPs", "ratio")
    name = str(dtype).removeprefix("torch.")
    print_table(f"Inference, batch size {batch_size}, {name}", columns, rows)
    states = costs.state_bytes(plan, shape, batch_size=batch_size, bytes_per_element=dtype.itemsize)
    if states:
        print_text(
            f"Beside the KV cache, at any length, the states of recurrences and convolutions: {bytes_text(states)}"
        )


def _with_ratio(flops: list[int]) -> tuple[str, str]:
    return count_text(flops[0]), f"{flops[0] / flops[1]:.3f}"


def _print_training(plan: LayerPlan, shape: ModelShape, loaded: LoadedConfig, gpus: int) -> None:
    from uniattn_pl.training.memory_estimate import stage_memory

    config = loaded.config
    stages = [stage_memory(config, plan, shape, stage=stage, num_devices=gpus) for stage in (1, 2)]
    names = [name for name in vars(stages[0]) if name != "teacher" or any(memory.teacher for memory in stages)]
    rows = [
        (f"stage {stage}", *map(bytes_text, (memory.total, *(getattr(memory, name) for name in names))))
        for stage, memory in enumerate(stages, start=1)
    ]
    planned, unmodified = (costs.parameters(p, shape) for p in (plan, LayerPlan.stock(shape)))
    print()
    print_text(
        f"Parameters: {count_text(planned)} ({planned:,}); unmodified: {count_text(unmodified)} ({unmodified:,})"
    )
    active = costs.active_parameters(plan, shape)
    if active < planned:
        print_text(
            f"Of them compute for a token: {count_text(active)} ({active:,}); the other experts wait to be chosen"
        )
    print()
    columns = ("stage", "memory", *names)
    size = f"micro batches of {config.training.micro_batch_size} x {config.data.max_length} tokens"
    how = "that hold all weights (ddp)" if config.training.optimizer == ADAMW_8BIT else "that share weights (fsdp)"
    devices = "one device" if gpus == 1 else f"each of {gpus} devices {how}"
    print_table(f"Training memory of {devices} (estimate), {size}", columns, rows)


def _print_fits(
    plan: LayerPlan, shape: ModelShape, loaded: LoadedConfig, arguments: argparse.Namespace, memory: int
) -> None:
    from uniattn_pl.training.card_needs import Cards, card_needs

    lengths = arguments.length or list(LENGTHS)
    cards = Cards(arguments.gpus, memory)
    needs = list(card_needs(loaded.config, plan, shape, cards, batch_size=arguments.batch_size, lengths=lengths))
    rows = [
        (need.what, bytes_text(need.needed), f"{need.needed / memory:.0%}", "yes" if need.fits else need.remedy)
        for need in needs
    ]
    each = "a device" if arguments.gpus == 1 else f"each of {arguments.gpus} devices"
    print()
    title = f"On {each} of {bytes_text(memory)} (estimate; up to {USABLE_MEMORY:.0%} of it fits)"
    print_table(title, ("what", "memory", "of it", "fits, or what would"), rows)
    for note in (need.note for need in needs if need.note):
        print_text(note)
