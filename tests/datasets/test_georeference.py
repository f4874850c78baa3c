# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Where a patch lies is exact, from the integers that its sample carries."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio import Affine
from rasterio.crs import CRS
from torchgeo.datasets import stack_samples

from tests.data.dates.data import generate, write_places
from tests.data.geotiff.data import write_scene
from torchgeo_cmid.datasets import (
    Georeference,
    Olinda,
    Patch,
    PatchPair,
    Scenes,
    decode_crs,
)
from torchgeo_cmid.datasets.batch import stack_patches


def expected(
    path: str, row: int, col: int, size: int, pixels: int
) -> tuple[list[Fraction], list[Fraction]]:
    """The transform and the bounds of a window of a file, in exact numbers."""
    with rasterio.open(path) as file:
        a, b, c, d, e, f = map(Fraction, tuple(file.transform)[:6])
    step = Fraction(size, pixels)
    x, y = c + a * col + b * row, f + d * col + e * row
    assert b == d == 0
    transform = [a * step, b, x, d, e * step, y]
    return transform, [x, y + e * size, x + a * size, y]


def assert_exact(
    place: Georeference, path: str, row: int, col: int, size: int, pixels: int
) -> None:
    transform, bounds = expected(path, row, col, size, pixels)
    found = [*place.transform[:6], *place.bounds]
    for value, exact in zip(found, transform + bounds, strict=True):
        assert abs(Fraction(value) - exact) <= abs(exact) * Fraction(1, 10**12)


class TestShippedScene:
    def test_exact(self) -> None:
        """The float32 transform of the sample is a quarter of a metre off."""
        dataset = Scenes(Olinda.path)
        patch = Patch(0, 123, 201, 96)
        sample = dataset[patch]
        assert sample['patch'].dtype == torch.int64
        place = dataset.georeference(sample['patch'], sample['image'].shape[-1])
        assert_exact(place, Olinda.path, 123, 201, 96, 96)
        assert place == dataset.georeference(patch)
        assert place.crs == dataset.scenes[0].crs == decode_crs(sample['crs'])
        with rasterio.open(Olinda.path) as file:
            assert decode_crs(sample['crs']) == file.crs
        rounded = Affine(*sample['transform'].tolist()[:6])
        off = np.subtract(rounded @ (0, 0), place.transform @ (0, 0))
        assert 0.1 < np.abs(off).max() < 0.5

    def test_clipped_by_a_region(self) -> None:
        west, south, east, north = Scenes(Olinda.path).index.total_bounds
        middle = [
            west + (east - west) / 3,
            south + (north - south) / 4,
            east - (east - west) / 4,
            north - (north - south) / 3,
        ]
        dataset = Scenes(Olinda.path, roi=middle)
        row, col = dataset.scenes[0].origin
        assert min(row, col) > 50
        sample = dataset[Patch(0, 7, 11, 64)]
        place = dataset.georeference(sample['patch'])
        assert_exact(place, Olinda.path, row + 7, col + 11, 64, 64)

    def test_pairs_of_dates(self, tmp_path: Path) -> None:
        """The second date has pixels of its own, and is shown in those of the first."""
        coarse = str(tmp_path / 'coarse.tif')
        with rasterio.open(Olinda.path) as file:
            image, profile = file.read()[:, :350:3, :348:3], file.profile
            profile |= {'height': image.shape[1], 'width': image.shape[2]}
            profile['transform'] = file.transform @ Affine.scale(3)
        with rasterio.open(coarse, 'w', **profile) as file:
            file.write(image)
        dataset = Scenes([Olinda.path, coarse])
        paths = [scene.path for scene in dataset.scenes]
        first = Patch(paths.index(Olinda.path), 30, 60, 96)
        second = Patch(paths.index(coarse), 10, 20, 32)
        for pair in (PatchPair(first, second), PatchPair(second, first)):
            sample = dataset[pair]
            assert sample['patch'].tolist() == [list(patch) for patch in pair]
            pixels = sample['image'].shape[-1]
            assert pixels == pair.first.size
            places = [dataset.georeference(p, pixels) for p in sample['patch']]
            for place, patch in zip(places, pair, strict=True):
                path = dataset.scenes[patch.scene].path
                assert_exact(place, path, *patch[1:], pixels)
            # the same ground
            assert places[0].bounds == pytest.approx(places[1].bounds, rel=1e-12)
            assert [decode_crs(crs) for crs in sample['crs']] == [places[0].crs] * 2


class TestDates:
    def test_crs_of_each_date(self, tmp_path: Path) -> None:
        generate(tmp_path)
        dataset = Scenes(tmp_path)
        sample = dataset[PatchPair(Patch(0, 30, 40, 96), Patch(2, 2, 1, 96))]
        codes = [decode_crs(crs).to_epsg() for crs in sample['crs']]
        assert codes == [32621, 32622]

    @pytest.mark.parametrize('empty', [0, 1])
    def test_one_that_serves_twice(self, tmp_path: Path, empty: int) -> None:
        write_places(tmp_path / 'a.tif', fill=float(empty == 0))
        write_places(tmp_path / 'b.tif', res=30, size=(99, 99), fill=float(empty == 1))
        dataset = Scenes(tmp_path)
        pair = PatchPair(Patch(0, 60, 90, 96), Patch(1, 20, 30, 32))
        sample = dataset[pair]
        shown = pair[1 - empty]
        assert sample['patch'].tolist() == [list(shown)] * 2
        place = dataset.georeference(sample['patch'][0], sample['image'].shape[-1])
        assert_exact(place, dataset.scenes[shown.scene].path, *shown[1:], 96)
        torch.testing.assert_close(
            sample['transform'], torch.tensor(tuple(place.transform))
        )


class TestBatches:
    @pytest.mark.parametrize('collate', [stack_patches, stack_samples])
    def test_scenes_of_several_systems(self, tmp_path: Path, collate: object) -> None:
        generate(tmp_path)
        dataset = Scenes(tmp_path)
        patches = [Patch(i, 3 * i, 5 * i, 32) for i in range(4)]
        batch = collate(dataset.__getitems__(patches))  # type: ignore[operator]
        assert batch['patch'].tolist() == [list(patch) for patch in patches]
        for i, patch in enumerate(patches):
            scene = dataset.scenes[patch.scene]
            assert decode_crs(batch['crs'][i]) == scene.crs
            place = dataset.georeference(batch['patch'][i])
            assert place.crs == scene.crs
            assert_exact(place, scene.path, *patch[1:], 32)

    def test_system_without_a_code(self, tmp_path: Path) -> None:
        wkt = CRS.from_proj4('+proj=tmerc +lat_0=1 +lon_0=-57 +k=0.9 +x_0=7e5').to_wkt()
        path = write_scene(tmp_path / 'a.tif', crs=wkt, origin=(700_000, 100_000))
        sample = Scenes(path)[Patch(0, 0, 0, 8)]
        with rasterio.open(path) as file:
            assert decode_crs(sample['crs']) == file.crs
        with pytest.raises(ValueError, match='give that of one patch'):
            decode_crs(sample['crs'][None])

    @pytest.mark.parametrize(
        'patch', [(0, 1, 2), (0, 1.0, 2, 8), torch.zeros(2, 4, dtype=torch.int64)]
    )
    def test_no_patch(self, patch: object) -> None:
        with pytest.raises(TypeError, match='must be four integers'):
            Scenes(Olinda.path).georeference(patch)  # type: ignore[arg-type]

    @pytest.mark.parametrize('scene', [-1, 1])
    def test_no_such_scene(self, scene: int) -> None:
        with pytest.raises(IndexError, match=f'no scene {scene}, only 0 to 0'):
            Scenes(Olinda.path).georeference(Patch(scene, 0, 0, 8))
