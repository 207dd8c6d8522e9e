"""Layers that visit a device: never more than a few at once, and what was written to them is kept."""

from __future__ import annotations

import copy

import torch
from tests.calibration.test_calibrate import PLANS, batches
from tests.parity import stock_llama

from uniattn_pl.calibration import calibrate
from uniattn_pl.families.inspection import decoder_layers
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.modeling.loading.layer_offload import LayerOffload


class Watched(LayerOffload):
    """Counts what visits, and gives every visitor memory of its own, as a second device would."""

    most = 0

    def bring(self, layer: torch.nn.Module, _: object = None) -> None:
        for parameter in layer.parameters():
            if parameter not in self._homes:
                host = parameter.data
                parameter.data = host.clone()
                self._homes[parameter] = host, parameter._version
        super().bring(layer)
        self.most = max(self.most, len(self.layers))


def test_calibration_of_visiting_layers_gives_the_same_weights() -> None:
    data = batches(padded=True)
    plain = stock_llama()
    expected = converted_copy(plain, PLANS["mixed"])
    report = calibrate(plain, expected, data[:2], data[2:])

    residency = Watched(torch.device("cpu"), capacity=2)
    original = residency.adopt(stock_llama())
    before = copy.deepcopy(original.state_dict())
    converted = converted_copy(original, PLANS["mixed"])
    assert calibrate(original, converted, data[:2], data[2:]) == report
    assert residency.most == 2
    # the last visitors go home as well
    for layer in (*decoder_layers(original)[:2], *decoder_layers(converted)[:2]):
        residency.bring(layer)
    for name, weight in expected.state_dict().items():
        assert torch.equal(converted.state_dict()[name], weight), name
    for name, weight in original.state_dict().items():
        assert torch.equal(before[name], weight), name
