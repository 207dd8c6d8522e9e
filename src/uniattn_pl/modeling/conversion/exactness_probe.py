"""Whether a family's attention is what the operated layers take it for, decided by running it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.anatomy import anatomy_of
from uniattn_pl.families.encoder_decoder import beside_encoder
from uniattn_pl.families.inspection import (
    PUBLICATIONS,
    attention_of,
    attentions_of,
    decoder_layers,
    decoder_of,
    stock_model_type,
)
from uniattn_pl.families.passed_layers import hidden_of
from uniattn_pl.kernels.stock import has_maps
from uniattn_pl.modeling.attention.merged_heads import equalise_kv_heads
from uniattn_pl.modeling.attention.operate import operate
from uniattn_pl.modeling.attention.operated import OperatedAttention
from uniattn_pl.modeling.attention.published import Publications
from uniattn_pl.modeling.attention.publishing import publish_positions
from uniattn_pl.modeling.attention.skipped_block import skip_block
from uniattn_pl.modeling.conversion.aliased_copy import aliased_copy
from uniattn_pl.modeling.conversion.cross_probe import wrong_cross_attentions
from uniattn_pl.modeling.conversion.install import remove_norms
from uniattn_pl.modeling.conversion.probing import (
    INPUT_SCALES,
    LENGTH,
    by_keyword,
    differ,
    publishing_copy,
    tolerance,
    unpublished,
)
from uniattn_pl.modeling.conversion.stock_comparison import differs_from_stock
from uniattn_pl.plan import LayerPlan, LayerRow
from uniattn_pl.plan.roles import KEY_VALUE, KV_HEADS, MAP, ROLES, WINDOW

READS_ITSELF = "reading from themselves they do not give their own output"
DROPS = "dropped they do not give what they give with an attention of zeros"
SKIPS = "they do not give the stream in the form they get it, so that none can be left out"
UNCHANGED = "with equal heads, or a window as long as the text, they do not give their own output"
# On a model, and so on its copies: it was compared with itself under the unmodified plan, and gave the same.
COMPARED = "uniattn_compared"


def check_exact(model: PreTrainedModel, plan: LayerPlan) -> None:
    """Hold a family against its stock model: nothing that a conversion to `plan` would lose may be there.

    - Under the unmodified plan the model computes what it computed, over several hundred tokens.
    - A layer that reads from another gives its own output where it reads from itself; sources of keys too, since
      readers rotate as they do. A dropped layer gives what its stock one gives where the attention's output is zero;
      one that is left out can hand on what it gets, as its stock one gives the same form. One with fewer KV heads
      gives what its stock one gives where these heads are equal, one with a window what its stock one gives of a text
      as long as the window.
      At the first and at the last positions the model has, with its own inputs and with enlarged ones.
    - A cross-attention that uses another's map gives its own output with its own map.

    Weightless models are not probed, nor layers that were converted before.

    Raises:
        UserError: a layer's output differs (names the layers), or it cannot be run as its role has it.
    """
    if model.device.type == "meta":
        return
    former: LayerPlan | None = getattr(model, "layer_plan", None)
    stock = [row.index for row in plan.rows if former is None or not former.rows[row.index].operated]
    roles = {row.index: row.role for row in plan.rows if row.operated}
    roles |= {row.source: row.role for row in plan.rows if row.source is not None and row.traits.reads == KEY_VALUE}
    probed = {index: roles[index] for index in stock if index in roles}
    crossed = [index for index in stock if plan.rows[index].cross_map]
    family = stock_model_type(model.config)
    training = model.training
    model.eval()
    try:
        difference = differs_from_stock(model) if former is None and not vars(model).get(COMPARED) else 0.0
        wrong = _wrong_layers(model, probed)
        wrong_cross = wrong_cross_attentions(model, crossed) if crossed else []
        _check_rotations(model, plan)
    except UserError:
        raise
    # The family's own code runs, in another order than it was written for: any exception may come out of it.
    except Exception as error:
        raise UserError(
            f"model type '{family}': its attention cannot be run as a plan has it "
            f"({type(error).__name__}: {error}). Choose an architecture that leaves its layers as they are."
        ) from error
    finally:
        model.train(training)
    if difference > tolerance(model.dtype):
        raise UserError(
            f"model type '{family}': it computes something else as soon as its attentions are called "
            f"as a plan calls them, all layers unmodified (hidden states differ by {difference:.1g} of their size)."
        )
    vars(model)[COMPARED] = True
    if wrong:
        of_roles = sorted({roles[index] for index in wrong})
        shown = dict.fromkeys(_broken_promise(role) for role in of_roles)
        raise UserError(
            f"model type '{family}': layers {', '.join(map(str, wrong))} "
            f"compute something that a plan would lose ({', '.join(of_roles)}): {'; '.join(shown)}. "
            "Choose layers or an architecture that leave them as they are."
        )
    if wrong_cross:
        raise UserError(
            f"model type '{family}': the cross-attention of layers {', '.join(map(str, wrong_cross))} computes "
            "something that a plan would lose: with its own map it does not give its own output. Leave it as it is "
            "(architecture.cross_attention=false)."
        )


def _broken_promise(role: str) -> str:
    if not ROLES[role].feed_forward:
        return SKIPS
    if ROLES[role].complete:
        return UNCHANGED
    return READS_ITSELF if ROLES[role].computes else DROPS


@torch.no_grad()
def _wrong_layers(model: PreTrainedModel, roles: dict[int, str]) -> list[int]:
    """Of the layers in `roles`, those that give another output, at the model's first positions or at its last."""
    last = max(0, (getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0) - LENGTH)
    calls = [_layer_calls(model, list(roles), first) for first in sorted({0, last})]
    return [
        index
        for index, role in roles.items()
        if any(_is_wrong(model, index, role, at_positions[index]) for at_positions in calls)
    ]


@torch.no_grad()
def _check_rotations(model: PreTrainedModel, plan: LayerPlan) -> None:
    """Raise UserError where a layer would put queries that are turned by their positions against keys that are not,
    or the other way round (SmolLM3, Cohere-2 and others leave some layers without a rotation)."""
    links = [(row.index, row.source) for row in plan.rows if row.source is not None and row.traits.reads == KEY_VALUE]
    calls = _layer_calls(model, sorted({index for link in links for index in link}), 0) if links else {}
    turns = {index: _turns(attentions_of(model)[index], call) for index, call in calls.items()}
    wrong = [f"{reader} reads {source}" for reader, source in links if turns[reader] != turns[source]]
    if wrong:
        raise UserError(
            f"model type '{stock_model_type(model.config)}': layer {'; layer '.join(wrong)}, but only one of the two "
            "turns queries and keys by their positions (share_kv). Choose a source that does as its reader does."
        )


def _turns(attention: Any, call: _LayerCall) -> bool:
    """Whether an attention does anything with the rotation that it is given."""
    rotation = call.attention.get("position_embeddings")
    if rotation is None or isinstance(attention, OperatedAttention):
        return rotation is not None
    complex_table = isinstance(rotation, torch.Tensor)  # DeepSeek-V2
    other = rotation.roll(1, dims=-2) if complex_table else tuple(part.roll(1, dims=-2) for part in rotation)
    with_other = {**call.attention, "position_embeddings": other}
    return not torch.equal(attention(**call.attention)[0], attention(**with_other)[0])


@dataclass(frozen=True)
class _LayerCall:
    """What one layer and its attention were called with: positional and keyword arguments, hidden states [B, L, d]."""

    args: Any
    kwargs: dict[str, Any]
    attention: dict[str, Any]


def _layer_calls(model: PreTrainedModel, layers: list[int], first: int) -> dict[int, _LayerCall]:
    """The calls of `layers` in one forward over random tokens at positions from `first`."""
    of_layer: dict[int, tuple[Any, dict[str, Any]]] = {}
    of_attention: dict[int, dict[str, Any]] = {}
    handles = []
    for index in layers:

        def record_layer(_: Any, args: Any, kwargs: dict[str, Any], index: int = index) -> None:
            of_layer[index] = args, unpublished(kwargs)

        def record(_: Any, args: Any, kwargs: dict[str, Any], index: int = index) -> None:
            of_attention[index] = by_keyword(args, kwargs)

        layer = decoder_layers(model)[index]
        handles += [
            layer.register_forward_pre_hook(record_layer, with_kwargs=True),
            attention_of(layer).register_forward_pre_hook(record, with_kwargs=True),
        ]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, LENGTH), generator=generator).to(model.device)
    positions = torch.arange(first, first + LENGTH, device=model.device)[None]
    try:
        beside = beside_encoder(model, LENGTH)
        decoder_of(model)(input_ids=ids, position_ids=positions, use_cache=False, **beside)
    finally:
        for handle in handles:
            handle.remove()
    return {index: _LayerCall(*of_layer[index], of_attention[index]) for index in layers}


def _is_wrong(model: PreTrainedModel, index: int, role: str, call: _LayerCall) -> bool:
    """Whether a layer gives another output than its role promises; a reader's on inputs of every scale."""
    if not ROLES[role].feed_forward:
        return _skips_wrongly(model, index, role, call)
    if not ROLES[role].computes:
        return _drops_wrongly(model, index, role, call)
    stock, hidden = attention_of(decoder_layers(model)[index]), call.attention["hidden_states"]
    differs = _alone_differs if ROLES[role].complete else _reads_itself_wrongly
    return any(
        differs(stock, index, role, {**call.attention, "hidden_states": hidden * scale}) for scale in INPUT_SCALES
    )


def _alone_differs(stock: Any, index: int, role: str, kwargs: dict[str, Any]) -> bool:
    """Whether a layer that keeps its family's forward gives another output where its role changes nothing."""
    sizes = ROLES[role].sizes
    equal = publishing_copy(stock)
    equal.publishes = frozenset()
    if KV_HEADS in sizes:
        equal = copy.deepcopy(equal)  # its heads become equal, the stock ones must not
        equalise_kv_heads(equal)
    changed = aliased_copy(equal)
    values: dict[str, Any] = {KV_HEADS: 1, WINDOW: LENGTH}
    operate(changed, LayerRow(index, role, **{name: values[name] for name in sizes}))
    expected, *_ = equal(**kwargs, **{PUBLICATIONS: Publications()})
    output, *_ = changed(**kwargs, **{PUBLICATIONS: Publications()})
    return differ(output, expected)


def _drops_wrongly(model: PreTrainedModel, index: int, role: str, call: _LayerCall) -> bool:
    """Whether a layer without attention gives another output than the stock layer whose attention gives zero."""
    stock = aliased_copy(decoder_layers(model)[index])
    dropped = aliased_copy(stock)
    attention_of(stock).register_forward_hook(lambda _, args, output: (torch.zeros_like(output[0]), *output[1:]))
    operate(attention_of(dropped), LayerRow(index, role))
    remove_norms(dropped, anatomy_of(model.config).attention_norms)
    return differ(hidden_of(dropped(*call.args, **call.kwargs)), hidden_of(stock(*call.args, **call.kwargs)))


def _skips_wrongly(model: PreTrainedModel, index: int, role: str, call: _LayerCall) -> bool:
    """Whether a layer that hands on what it gets gives it in another form than the stock one."""
    stock = aliased_copy(decoder_layers(model)[index])
    skipped = aliased_copy(stock)
    operate(attention_of(skipped), LayerRow(index, role))
    skip_block(skipped)
    found, expected = (layer(*call.args, **call.kwargs) for layer in (skipped, stock))
    forms = [(type(given), len(given) if isinstance(given, tuple) else 1) for given in (found, expected)]
    return forms[0] != forms[1] or hidden_of(found).shape != hidden_of(expected).shape


def _reads_itself_wrongly(stock: Any, index: int, role: str, kwargs: dict[str, Any]) -> bool:
    # a kept map is the eager kernel's, which in half precision rounds otherwise than the one that was chosen
    keeps = ROLES[role].reads == MAP and has_maps(stock.config) and kwargs["hidden_states"].dtype == torch.float32
    modes = ("replay", "materialise") if keeps else ("replay",)
    return any(_reads_itself_wrongly_by(stock, index, role, kwargs, mode) for mode in modes)


def _reads_itself_wrongly_by(stock: Any, index: int, role: str, kwargs: dict[str, Any], mode: str) -> bool:
    """The same with maps that are computed again, or kept: what a family returns as its map need not be all of it."""
    expected, *_ = stock(**kwargs)
    # Named as if it read from the layer below (or above the bottom one), where its own publication is put.
    elsewhere = index - 1 if index else 1
    row = LayerRow(index, role, elsewhere)
    publications = Publications()
    source, reader = publishing_copy(stock, mode), publishing_copy(stock, mode)
    source.publishes, reader.publishes = frozenset({row.traits.reads}), frozenset()
    if row.traits.reads == KEY_VALUE:
        publish_positions(source, (), {**kwargs, PUBLICATIONS: publications})
    source(**kwargs, **{PUBLICATIONS: publications})
    publications[elsewhere] = publications[index]
    operate(reader, row)
    output, *_ = reader(**kwargs, **{PUBLICATIONS: publications})
    return differ(output, expected)
