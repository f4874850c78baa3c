# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Batch norm over all processes is batch norm; two processes: test_processes, too."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from torchgeo_cmid.runs.norms import GlobalBatchNorm, synchronise_batch_norms

# Every way to build a batch norm that changes what it computes.
WAYS: dict[str, dict[str, Any]] = {
    'default': {},
    'cumulative mean': {'momentum': None},
    'no statistics': {'track_running_stats': False},
    'no statistics, cumulative mean': {'track_running_stats': False, 'momentum': None},
    'no parameters': {'affine': False},
    'nothing': {'affine': False, 'track_running_stats': False},
    'other numbers': {'momentum': 0.5, 'eps': 0.1},
}
BATCHES = 3
SHARES = [3, 5]  # samples of each process


def make(way: dict[str, Any]) -> nn.BatchNorm2d:
    """A batch norm whose parameters are no ones and zeros."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, **way).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def batches(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = BATCHES, sum(SHARES), 4, 3, 3
    return list(torch.randn(shape, generator=generator, dtype=dtype) * 2 + 1)


def normalise(norm: nn.Module, part: slice, evaluated: slice) -> dict[str, Tensor]:
    """Train on a part of each batch, then evaluate: values and gradients."""
    found = {}
    for i, batch in enumerate(batches()):
        x = batch[part].clone().requires_grad_()
        y = norm.train()(x)
        (y * batch[part].sin()).square().sum().backward()
        found[f'train {i}'] = y.detach()
        found[f'gradient {i}'] = x.grad
    x = batches()[0][evaluated].clone().requires_grad_()
    y = norm.eval()(x)
    y.square().mul(batches()[1][evaluated]).sum().backward()
    found |= {'eval': y.detach(), 'gradient of eval': x.grad}
    return found | norm.state_dict()


def work(rank: int, folder: str) -> None:
    """Each way, as one of two processes."""
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    part = slice(0, SHARES[0]) if rank == 0 else slice(SHARES[0], None)
    results = {}
    for name, way in WAYS.items():
        norm = make(way)
        synchronise_batch_norms(nn.ModuleList([norm]))
        results[name] = normalise(norm, part, part)
        for key, parameter in norm.named_parameters():
            results[name][f'gradient of {key}'] = parameter.grad
    torch.save(results, f'{folder}/{rank}.pt')
    dist.destroy_process_group()


class TestTwoProcesses:
    def test_equal_one(self, tmp_path: Path) -> None:
        """Forward and backward, samples shared unevenly; evaluation is local."""
        mp.spawn(work, (str(tmp_path),), nprocs=2)
        two = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
        for name, way in WAYS.items():
            total: dict[str, Tensor] = {}
            for rank, part in enumerate((slice(0, 3), slice(3, None))):
                norm = make(way)
                expected = normalise(norm, slice(None), part)
                for key, value in expected.items():
                    if key.startswith(('train', 'gradient ')) and 'eval' not in key:
                        value = value[part]
                    message = f'{name}, {key} of process {rank}'
                    torch.testing.assert_close(two[rank][name][key], value, msg=message)
                for key, parameter in norm.named_parameters():
                    assert parameter.grad is not None
                    total[key] = total.get(key, 0) + parameter.grad
            # training was counted twice: once with each process's part of evaluation
            for key, value in total.items():
                norm = make(way)
                normalise(norm, slice(None), slice(0, 0))
                whole = norm.get_parameter(key).grad
                assert whole is not None
                actual = sum(rank[name][f'gradient of {key}'] for rank in two)
                torch.testing.assert_close(actual, value - whole, msg=f'{name}, {key}')


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

    @pytest.mark.parametrize('name', WAYS)
    def test_each_way(self, name: str) -> None:
        """Regression: a cumulative mean, and eval without statistics, crashed."""
        plain, synced = make(WAYS[name]), make(WAYS[name])
        synchronise_batch_norms(nn.ModuleList([synced]))
        expected = normalise(plain, slice(None), slice(None))
        torch.testing.assert_close(
            normalise(synced, slice(None), slice(None)), expected
        )
        for a, b in zip(plain.parameters(), synced.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)

    @pytest.mark.parametrize('training', [True, False])
    def test_statistics_switched_off_later(self, training: bool) -> None:
        """Regression: statistics moved on although they were switched off."""
        plain, synced = make({}), make({})
        synchronise_batch_norms(nn.ModuleList([synced]))
        x = batches()[0]
        for norm in (plain, synced):
            norm(x)
            norm.track_running_stats = False
            norm.train(training)
        torch.testing.assert_close(plain(x + 5), synced(x + 5))
        torch.testing.assert_close(plain.state_dict(), synced.state_dict())

    def test_one_value(self) -> None:
        """Regression: running statistics became infinite, where torch refuses."""
        norm = make({})
        synchronise_batch_norms(nn.ModuleList([norm]))
        with pytest.raises(ValueError, match='one value per channel'):
            norm(torch.zeros(1, 4, 1, 1).double())
        assert norm.running_var.isfinite().all()  # type: ignore[union-attr]

    def test_without_parameters_and_statistics(self) -> None:
        model = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
        x = torch.randn(6, 3)
        expected = model(x)
        synchronise_batch_norms(model)
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(
            model(x.bfloat16()).float(), expected, atol=0.1, rtol=0.1
        )
