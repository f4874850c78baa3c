# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Sampler, loader and data set agree in number and content of patches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

from tests.data.geotiff.data import generate, write_scene
from torchgeo_cmid.datamodules import RasterFolderDataModule
from torchgeo_cmid.datasets import Scenes
from torchgeo_cmid.samplers import NumberedPatches, RandomScenePatchSampler


def data_module(folder: Path, **arguments: Any) -> RasterFolderDataModule:
    defaults: dict[str, Any] = {
        'patch_size': 16,
        'length': 16,
        'batch_size': 4,
        'mean': [0.0] * 3,
        'std': [1.0] * 3,
    }
    module = RasterFolderDataModule(str(folder), **defaults | arguments)
    module.setup('fit')
    return module


def addresses(loader: DataLoader[Any]) -> list[list[int]]:
    return [patch for batch in loader for patch in batch['patch'].tolist()]


@pytest.mark.parametrize('dates', [1, 2])
@pytest.mark.parametrize('workers', [0, 2])
def test_by_number_as_drawn(workers: int, dates: int, tmp_path: Path) -> None:
    for day in (1, 2):
        write_scene(tmp_path / f'a_2020010{day}.tif', seed=day, size=96)
    regex = r'.*_(?P<date>\d{8})\.tif'
    module = data_module(
        tmp_path, dates=dates, filename_regex=regex, num_workers=workers
    )
    for loader, sampler in (
        (module.train_dataloader(), module.train_sampler),
        (module.val_dataloader(), module.val_sampler),
    ):
        assert isinstance(loader, DataLoader)
        assert len(loader.dataset) == len(sampler) > 0  # type: ignore[arg-type]
        by_number = DataLoader(
            loader.dataset,
            batch_size=4,
            sampler=SequentialSampler(loader.dataset),  # type: ignore[arg-type]
            collate_fn=loader.collate_fn,
            num_workers=workers,
        )
        expected = addresses(loader)
        assert addresses(by_number) == expected
        assert addresses(by_number) == expected
        with pytest.raises(IndexError, match='there is no patch'):
            loader.dataset[len(sampler)]
    module.train_sampler.set_epoch(1)
    patch = next(iter(module.train_sampler))
    shown = module.train_dataloader().dataset[0]['patch']
    assert shown.equal(torch.tensor(patch))


def test_those_of_all_processes(tmp_path: Path) -> None:
    generate(tmp_path, 2)
    scenes = Scenes(tmp_path)
    samplers = [
        RandomScenePatchSampler(scenes, size=16, length=9, num_replicas=2, rank=rank)
        for rank in (0, 1)
    ]
    drawn = [list(sampler) for sampler in samplers]
    dataset = NumberedPatches(scenes, samplers[1])
    assert len(dataset) == 10
    shown = [dataset[i]['patch'].tolist() for i in range(10)]
    assert shown[::2] == [list(patch) for patch in drawn[0]]
    assert shown[1::2] == [list(patch) for patch in drawn[1]]


class TestValidationLength:
    def test_in_proportion(self, tmp_path: Path) -> None:
        generate(tmp_path, 4, size=128)
        whole = data_module(tmp_path, length=None, val_split=0.25)
        half = data_module(
            tmp_path, length=len(whole.train_sampler) // 2, val_split=0.25
        )
        twice = data_module(
            tmp_path, length=len(whole.train_sampler) * 2, val_split=0.25
        )
        everything = list(whole.val_sampler)
        assert len(twice.val_sampler) == len(everything)
        assert len(half.val_sampler) == pytest.approx(len(everything) / 2, abs=1)
        kept = list(half.val_sampler)
        assert set(kept) < set(everything)
        assert {patch.scene for patch in kept} == {patch.scene for patch in everything}

    def test_given(self, tmp_path: Path) -> None:
        generate(tmp_path, 4, size=128)
        module = data_module(tmp_path, length=8, val_split=0.25, val_length=7)
        assert len(module.val_sampler) == len(list(module.val_sampler)) == 7
        assert len(set(module.val_sampler)) == 7
        (loader,) = [module.val_dataloader()]
        assert sum(len(batch['image']) for batch in loader) == 7
        module = data_module(tmp_path, length=8, val_split=0.25, val_length=10**6)
        assert len(module.val_sampler) > 7

    def test_out_of_range(self, tmp_path: Path) -> None:
        generate(tmp_path, 1)
        with pytest.raises(
            ValueError, match='val_length=0 must be a whole number, at least 1'
        ):
            data_module(tmp_path, val_length=0)

    def test_at_least_one(self, tmp_path: Path) -> None:
        generate(tmp_path, 4, size=128)
        module = data_module(tmp_path, length=1, batch_size=1, val_split=0.25)
        assert len(module.val_sampler) == 1
