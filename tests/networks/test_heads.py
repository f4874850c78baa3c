# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The heads against the published implementation."""

import pytest
import torch

from tests.goldens import assert_relative, load_golden
from torchgeo_cmid.networks.heads import MLP, Decoder, PrototypeHead


class TestPrototypeHead:
    @pytest.mark.parametrize('norm', [True, False])
    def test_golden(self, norm: bool) -> None:
        golden = load_golden(f'prototype_head_{"bn" if norm else "nobn"}')
        head = PrototypeHead(12, 20, 8, 24, norm)
        names = {
            'last_layer.weight_g': 'prototypes.parametrizations.weight.original0',
            'last_layer.weight_v': 'prototypes.parametrizations.weight.original1',
        }
        state = {}
        for key, value in golden.items():
            if key.startswith('state/'):
                name = key.removeprefix('state/')
                is_conv = value.ndim == 3
                state[names.get(name, name)] = value.squeeze(-1) if is_conv else value
        head.load_state_dict(state)
        logits = head(golden['x'].mT.flatten(0, 1))
        assert_relative(logits, golden['y'].mT.flatten(0, 1), 1e-5)

    def test_gain_is_one_and_frozen(self) -> None:
        head = PrototypeHead(4, 8, 4, 6)
        gain = head.prototypes.get_parameter('parametrizations.weight.original0')
        assert not gain.requires_grad
        assert torch.equal(gain, torch.ones(6, 1))
        logits = head(torch.randn(10, 4))
        assert logits.abs().max() <= 1 + 1e-6


class TestMLP:
    def test_norm(self) -> None:
        kinds = [type(layer).__name__ for layer in MLP(4, 8, 2, norm=True)]
        assert kinds == ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
        kinds = [type(layer).__name__ for layer in MLP(4, 8, 2)]
        assert kinds == ['Linear', 'ReLU', 'Linear']


class TestDecoder:
    def test_shape(self) -> None:
        assert Decoder(8, 5, 16)(torch.randn(2, 8, 4, 4)).shape == (2, 5, 64, 64)
