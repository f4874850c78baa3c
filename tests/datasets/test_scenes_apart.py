# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What other data sets do and scenes cannot is refused, and nothing harmed by it."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchgeo.samplers as ts
from torch.utils.data import DataLoader
from torchgeo.datasets import (
    GeoDataset,
    IntersectionDataset,
    RasterDataset,
    UnionDataset,
)

from tests.data.geotiff.data import write_scene
from torchgeo_cmid.datasets import Patch, Scenes


def two(folder: Path, crs: str = 'EPSG:32621') -> tuple[Scenes, RasterDataset]:
    """Scenes, and a data set of TorchGeo's of the same ground."""
    write_scene(folder / 'a' / 'a.tif')
    write_scene(folder / 'b' / 'b.tif', crs=crs)
    return Scenes(folder / 'a'), RasterDataset(folder / 'b')


class TestCombining:
    @pytest.mark.parametrize('operation', [operator.or_, operator.and_])
    @pytest.mark.parametrize('crs', ['EPSG:32621', 'EPSG:4326'])
    @pytest.mark.parametrize('swapped', [False, True])
    def test_operators_leave_the_other_as_it_was(
        self,
        operation: Callable[[Any, Any], Any],
        crs: str,
        swapped: bool,
        tmp_path: Path,
    ) -> None:
        scenes, other = two(tmp_path, crs)
        before = other.crs, other.res, other.bounds
        index = scenes.index.copy()
        pair = (other, scenes) if swapped else (scenes, other)
        with pytest.raises(TypeError, match=r'several paths or sensors in one Scenes'):
            operation(*pair)
        assert (other.crs, other.res, other.bounds) == before
        assert scenes.index.equals(index)

    @pytest.mark.parametrize('operation', [operator.or_, operator.and_])
    def test_two_of_them(
        self, operation: Callable[[Any, Any], Any], tmp_path: Path
    ) -> None:
        scenes, _ = two(tmp_path)
        with pytest.raises(TypeError, match='several paths or sensors in one Scenes'):
            operation(scenes, scenes)

    @pytest.mark.parametrize('kind', [IntersectionDataset, UnionDataset])
    @pytest.mark.parametrize('crs', ['EPSG:32621', 'EPSG:4326'])
    @pytest.mark.parametrize('swapped', [False, True])
    def test_classes(
        self, kind: type[GeoDataset], crs: str, swapped: bool, tmp_path: Path
    ) -> None:
        scenes, other = two(tmp_path, crs)
        res = other.res
        pair = (other, scenes) if swapped else (scenes, other)
        with pytest.raises(TypeError, match=r'several paths or sensors in one Scenes'):
            kind(*pair)
        assert other.res == res

    def test_another_resolution_or_crs(self, tmp_path: Path) -> None:
        scenes, other = two(tmp_path)
        footprints = scenes.index.geometry.copy()
        with pytest.raises(TypeError, match='its own coordinate reference system'):
            scenes.crs = other.crs
        with pytest.raises(TypeError, match='its own resolution'):
            scenes.res = 10.0
        assert scenes.index.geometry.equals(footprints)
        assert scenes.crs.to_epsg() == 4326
        scenes.crs = scenes.crs  # TorchGeo's own setter does nothing, either


class TestIndex:
    @pytest.mark.parametrize(
        'index',
        [
            slice(0, 1),
            (slice(0, 1), slice(0, 1)),
            (0, 0, 0, 8),
            [Patch(0, 0, 0, 8)],
            0,
            np.int64(0),
            'a.tif',
            None,
        ],
        ids=repr,
    )
    def test_not_by_patches(self, index: Any, tmp_path: Path) -> None:
        dataset = Scenes(write_scene(tmp_path / 'a.tif'))
        message = r'read by a Patch.*not by .*RandomScenePatchSampler'
        with pytest.raises(TypeError, match=message):
            dataset[index]
        with pytest.raises(TypeError, match=message):
            dataset.__getitems__([Patch(0, 0, 0, 8), index])

    def test_bounds(self, tmp_path: Path) -> None:
        dataset = Scenes(write_scene(tmp_path / 'a.tif'))
        west, south, east, north = dataset.index.total_bounds
        assert dataset.bounds[:2] == (slice(west, east), slice(south, north))
        with pytest.raises(TypeError, match='read by a Patch'):
            dataset[dataset.bounds]  # type: ignore[index]

    def test_loader_without_sampler(self, tmp_path: Path) -> None:
        dataset = Scenes(write_scene(tmp_path / 'a.tif'))
        with pytest.raises(TypeError, match='read by a Patch'):
            next(iter(DataLoader(dataset)))


class TestSamplers:
    """Those of TorchGeo, which place patches in one CRS and one resolution."""

    @pytest.mark.parametrize(
        ('sampler', 'arguments'),
        [
            (ts.RandomPatchSampler, {'size': 8, 'length': 1}),
            (ts.GriddedPatchSampler, {'size': 8, 'stride': 8}),
            (ts.RandomGeoSampler, {'size': 8, 'length': 1}),
            (ts.GridGeoSampler, {'size': 8, 'stride': 8}),
            (ts.PreChippedGeoSampler, {}),
            (ts.RandomBatchGeoSampler, {'size': 8, 'length': 1, 'batch_size': 1}),
        ],
    )
    def test_spatial(
        self, sampler: Callable[..., Any], arguments: dict[str, Any], tmp_path: Path
    ) -> None:
        dataset = Scenes(write_scene(tmp_path / 'a.tif'))
        with pytest.raises(TypeError, match=r'RandomScenePatchSampler'):
            list(sampler(dataset, **arguments))

    @pytest.mark.parametrize(
        'sampler', [ts.RandomTimestampSampler, ts.SequentialTimestampSampler]
    )
    def test_temporal(self, sampler: Callable[..., Any], tmp_path: Path) -> None:
        """They know no place: what they yield is refused."""
        path = write_scene(tmp_path / 'a_20240105.tif')
        dataset = Scenes(path, filename_regex=r'a_(?P<date>\d{8})\.tif')
        with pytest.raises(TypeError, match='read by a Patch'):
            dataset[next(iter(sampler(dataset)))]
