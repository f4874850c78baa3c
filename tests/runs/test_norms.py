# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Batch norm over all processes is batch norm; two processes: tests/tasks."""

import copy

import torch
from torch import nn

from torchgeo_cmid.runs.norms import GlobalBatchNorm, synchronise_batch_norms


class TestGlobalBatchNorm:
    def test_as_torch(self) -> None:
        torch.manual_seed(0)
        plain = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(144)
        ).double()
        for parameter in plain.parameters():
            nn.init.normal_(parameter)
        synced = copy.deepcopy(plain)
        synchronise_batch_norms(synced)
        assert isinstance(synced[1], GlobalBatchNorm)
        for _ in range(2):
            x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
            weight = torch.randn(144, dtype=torch.float64)
            outputs = []
            for model in (plain, synced):
                y = model(x)
                (y * weight).square().sum().backward()
                outputs.append(y)
            torch.testing.assert_close(*outputs)
        for a, b in zip(plain.parameters(), synced.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        torch.testing.assert_close(plain.state_dict(), synced.state_dict())
        torch.testing.assert_close(plain.eval()(x), synced.eval()(x))
        plain.load_state_dict(synced.state_dict())

    def test_without_parameters_and_statistics(self) -> None:
        model = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
        x = torch.randn(6, 3)
        expected = model(x)
        synchronise_batch_norms(model)
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(
            model(x.bfloat16()).float(), expected, atol=0.1, rtol=0.1
        )
