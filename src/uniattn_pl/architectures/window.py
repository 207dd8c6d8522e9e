"""Windows with sinks (Xiao et al., 2024, StreamingLLM): layers see the last tokens and the first few."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.architectures.layer_selection import selected_layers
from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.options import option
from uniattn_pl.plan import LayerPlan, ModelShape, PlanError
from uniattn_pl.plan.roles import WINDOWED


@register
@dataclass
class Window(Architecture):
    """Each such layer attends to `window` last tokens and `sinks` first ones (arXiv 2309.17453).

    Layers that slide already keep the smaller window, and get no sinks, as they have learned to do without.
    Cost: such a layer caches window - 1 + sinks tokens, however long the text is.
    """

    name = "window"
    summary = "layers attend to the last tokens and the first few, and cache no others (StreamingLLM)"
    mechanism = WINDOWED

    window: int = option(256, "last tokens that a layer sees, the present one among them", minimum=1)
    sinks: int = option(4, "first tokens of a text that it sees as well", minimum=0)
    layers: list[int] = option([], "0-based indices of the layers; default: all, or the num_layers at the top")
    num_layers: int | None = option(None, "instead of layers: this many, the uppermost", minimum=1)
    compensation: bool = option(False, "give every such layer a W_c (fitted on few tokens it harms a little)")

    def compile(self, shape: ModelShape) -> LayerPlan:
        spans = {index: shape.layers[index].window for index in shape.attention_layers}
        wider = [index for index, span in spans.items() if span is None or span > self.window]
        if not wider:
            widest = max(layer.window or 0 for layer in shape.layers)
            raise PlanError(
                f"window is {self.window}, but no layer of the model sees more than its last {widest} tokens."
            )
        layers = selected_layers(wider, self.layers, self.num_layers, self.name)
        plan = LayerPlan.stock(shape)
        plan = plan.limit_window(layers, self.window, self.sinks, compensated=self.compensation)
        sliding = [layer for layer in layers if shape.layers[layer].window is not None]
        return plan.limit_window(sliding, self.window, compensated=self.compensation)
