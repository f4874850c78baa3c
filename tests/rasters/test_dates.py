# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""When scenes were taken, and patches of one place on two dates."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pyproj import Transformer
from rasterio import Affine

from tests.data.dates.data import CRS, generate, write_places
from tests.data.geotiff.data import ORIGIN, write_scene
from torchgeo_cmid.datasets import Patch, PatchPair, Scenes, Sensor
from torchgeo_cmid.rasters.patch import pixel_frame, resize_patch

REGEX = r'.*_(?P<date>\d{8})\.tif'


class TestTimes:
    def test_date(self, tmp_path: Path) -> None:
        write_scene(tmp_path / 'a_20240105.tif')
        write_scene(tmp_path / 'b_20231224.tif')
        write_scene(tmp_path / 'notes.tif')  # is no scene of the expression
        dataset = Scenes(tmp_path, filename_regex=REGEX)
        assert list(dataset.index.index.left) == [
            pd.Timestamp('2024-01-05'),
            pd.Timestamp('2023-12-24'),
        ]
        assert list(dataset.index.index.right) == [
            pd.Timestamp('2024-01-05 23:59:59.999999'),
            pd.Timestamp('2023-12-24 23:59:59.999999'),
        ]
        assert dataset.bounds[2].start == pd.Timestamp('2023-12-24')
        start, stop, _ = dataset[Patch(0, 0, 0, 8)]['bounds'][6:].tolist()
        assert stop - start == pytest.approx(86_400, abs=256)  # float32

    def test_start_and_stop(self, tmp_path: Path) -> None:
        write_scene(tmp_path / 'a_2024_2025.tif')
        regex = r'a_(?P<start>\d{4})_(?P<stop>\d{4})\.tif'
        dataset = Scenes(tmp_path, filename_regex=regex, date_format='%Y')
        time = dataset.scenes[0].interval
        assert time.left == pd.Timestamp('2024-01-01')
        assert time.right == pd.Timestamp('2025-12-31 23:59:59.999999')

    def test_date_and_band(self, tmp_path: Path) -> None:
        for date in ('20240105', '20240620'):
            for band in ('B2', 'B3'):
                write_scene(tmp_path / f'a_{date}_{band}.tif', bands=1)
        regex = r'a_(?P<date>\d{8})_(?P<band>B\d)\.tif'
        dataset = Scenes(tmp_path, filename_regex=regex)
        assert dataset.bands == ('B2', 'B3')
        assert [str(i.left.date()) for i in dataset.index.index] == [
            '2024-01-05',
            '2024-06-20',
        ]

    def test_unknown(self, tmp_path: Path) -> None:
        write_scene(tmp_path / 'a_B2.tif', bands=1)
        dataset = Scenes(tmp_path, filename_regex=r'a_(?P<band>B\d)\.tif')
        assert dataset.scenes[0].interval.left == pd.Timestamp.min
        assert dataset.scenes[0].interval.right == pd.Timestamp.max

    def test_sensors_have_formats_of_their_own(self, tmp_path: Path) -> None:
        write_scene(tmp_path / 'a_20240105.tif')
        write_scene(tmp_path / 'b_2024.tif')
        dataset = Scenes(
            sensors=[
                Sensor(str(tmp_path / 'a_*'), filename_regex=REGEX),
                Sensor(
                    str(tmp_path / 'b_*'),
                    filename_regex=r'b_(?P<date>\d{4})\.tif',
                    date_format='%Y',
                ),
            ]
        )
        assert [i.right.year for i in dataset.index.index] == [2024, 2024]
        assert [i.right.month for i in dataset.index.index] == [1, 12]

    def test_bad_date(self, tmp_path: Path) -> None:
        bad = write_scene(tmp_path / 'a_20241305.tif')
        message = rf"{bad}: .* dates '20241305' .* date_format='%Y%m%d' does not read"
        with pytest.raises(ValueError, match=message):
            Scenes(tmp_path, filename_regex=REGEX)
        write_scene(tmp_path / 'b_20241205.tif')
        with pytest.warns(UserWarning, match='1 bad scenes are skipped'):
            dataset = Scenes(tmp_path, filename_regex=REGEX, skip_bad_files=True)
        assert len(dataset.scenes) == 1

    def test_zones(self, tmp_path: Path) -> None:
        write_scene(tmp_path / 'a_20240105T2330-0100.tif')
        write_scene(tmp_path / 'b_20240105T2330+0000.tif')
        dataset = Scenes(
            tmp_path,
            filename_regex=r'._(?P<date>\d{8}T\d{4}.\d{4})\.tif',
            date_format='%Y%m%dT%H%M%z',
        )
        assert [str(time.left) for time in dataset.index.index] == [
            '2024-01-06 00:30:00',
            '2024-01-05 23:30:00',
        ]

    def test_start_without_stop(self, tmp_path: Path) -> None:
        write_scene(tmp_path / 'a_2024.tif')
        with pytest.raises(ValueError, match='group start, but none named stop'):
            Scenes(tmp_path, filename_regex=r'a_(?P<start>\d{4})\.tif')

    def test_stop_before_start(self, tmp_path: Path) -> None:
        write_scene(tmp_path / 'a_2025_2024.tif')
        regex = r'a_(?P<start>\d{4})_(?P<stop>\d{4})\.tif'
        with pytest.raises(ValueError, match="dates '2025' to '2024'"):
            Scenes(tmp_path, filename_regex=regex, date_format='%Y')


class TestPixelFrame:
    @pytest.mark.parametrize(
        'second', [Patch(1, 5, 9, 32), Patch(2, 3, 20, 96), Patch(0, 40, 31, 96)]
    )
    def test_same_ground(self, tmp_path: Path, second: Patch) -> None:
        """The pixels that the frame maps to each other lie on the same ground."""
        generate(tmp_path)
        dataset = Scenes(tmp_path)
        pair = PatchPair(Patch(0, 30, 40, 96), second)
        scenes = dataset.scenes[0], dataset.scenes[second.scene]
        frame = pixel_frame(scenes, pair, 96)
        x, y = np.random.default_rng(0).uniform(0, 95, (2, 50))
        mapped = (frame @ np.stack([x, y, np.ones(50)]))[:2]

        steps = second.size / 96
        corner = second.col + (x + 0.5) * steps, second.row + (y + 0.5) * steps
        there = Transformer.from_crs(scenes[1].crs.to_wkt(), CRS, always_xy=True)
        east, north = there.transform(*(scenes[1].transform @ corner))
        expected = np.stack(
            [(east - ORIGIN[0]) / 10 - 40 - 0.5, (ORIGIN[1] - north) / 10 - 30 - 0.5]
        )
        np.testing.assert_allclose(mapped, expected, atol=2e-3)

    def test_same_patch(self, tmp_path: Path) -> None:
        generate(tmp_path)
        scene = Scenes(tmp_path).scenes[0]
        patch = Patch(0, 30, 40, 96)
        frame = pixel_frame((scene, scene), PatchPair(patch, patch), 96)
        np.testing.assert_allclose(frame, np.eye(3), atol=1e-9)


class TestReadingPairs:
    @pytest.mark.parametrize('second', [Patch(1, 19, 24, 32), Patch(2, 2, 1, 96)])
    def test_pixels_and_frame(self, tmp_path: Path, second: Patch) -> None:
        generate(tmp_path)
        pair = PatchPair(Patch(0, 30, 40, 96), second)
        sample = Scenes(tmp_path)[pair]
        assert sample['image'].shape == (4, 96, 96)
        assert sample['valid'].shape == (2, 96, 96)
        assert sample['valid'].all()
        frame = sample['frame'].double()
        y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing='ij')
        places = torch.stack([x, y, torch.ones_like(x)]).flatten(1).double()
        x, y, _ = (frame @ places).unflatten(1, (96, 96))
        # of each pixel of the second: metres east and south by the frame, and by itself
        expected = torch.stack([(40 + x + 0.5) * 10, (30 + y + 0.5) * 10])
        inside = slice(3, -3)  # the outermost pixels have no neighbours to mix with
        difference = (sample['image'][2:] - expected)[:, inside, inside]
        assert difference.abs().max() < 0.1

    def test_first_is_as_alone(self, tmp_path: Path) -> None:
        generate(tmp_path)
        dataset = Scenes(tmp_path)
        first, second = Patch(0, 30, 40, 96), Patch(1, 19, 24, 32)
        sample, alone = dataset[PatchPair(first, second)], dataset[first]
        assert torch.equal(sample['image'][:2], alone['image'])
        for key in ('bounds', 'transform'):
            assert torch.equal(sample[key], alone[key])

    def test_missing_date(self, tmp_path: Path) -> None:
        generate(tmp_path)
        dataset = Scenes(tmp_path)
        patch = Patch(3, 10, 20, 64)
        sample = dataset[PatchPair(patch, patch)]
        assert torch.equal(sample['image'], dataset[patch]['image'].repeat(2, 1, 1))
        assert torch.equal(sample['frame'], torch.eye(3))

    @pytest.mark.parametrize('missing', [0, 1])
    def test_one_date_without_data(self, tmp_path: Path, missing: int) -> None:
        fills = [1.0 if i == missing else 0.0 for i in range(2)]
        write_places(tmp_path / 'a_20240105.tif', fill=fills[0])
        write_places(
            tmp_path / 'b_20240620.tif', res=30, size=(100, 100), fill=fills[1]
        )
        pair = PatchPair(Patch(0, 60, 90, 96), Patch(1, 20, 30, 32))
        sample = Scenes(tmp_path)[pair]
        assert torch.equal(sample['image'][:2], sample['image'][2:])
        assert sample['valid'].all()
        assert torch.equal(sample['frame'], torch.eye(3))
        # the place is that of the date that is shown, and so are the pixels
        transform = Affine(*sample['transform'].tolist()[:6])
        east, south = sample['image'][:2].double()
        x, y = transform @ (48.0, 48.0)
        assert east[47:49, 47:49].mean() == pytest.approx(x - ORIGIN[0], abs=5)
        assert south[47:49, 47:49].mean() == pytest.approx(ORIGIN[1] - y, abs=5)
        assert transform.a == 10
        west, stop, res = sample['bounds'][:3].tolist()
        assert (stop - west) / res == pytest.approx(96)

    def test_fill_does_not_leak_where_pixels_are_resampled(
        self, tmp_path: Path
    ) -> None:
        write_places(tmp_path / 'a.tif')
        write_places(tmp_path / 'b.tif', res=30, size=(100, 100), fill=0.3)
        pair = PatchPair(Patch(0, 60, 60, 96), Patch(1, 20, 20, 32))
        sample = Scenes(tmp_path)[pair]
        valid = sample['valid'][1]
        # rows 20 to 29 of 20 to 51 are fill, and 3 pixels each; half of one is mixed
        assert not valid[:31].any()
        assert valid[32:].all()
        south = sample['image'][3]
        expected = 600 + (torch.arange(96) + 0.5) * 10
        rows = slice(33, 93)
        torch.testing.assert_close(
            south[rows], expected[rows, None].expand(-1, 96), atol=0.1, rtol=0
        )

    def test_batch(self, tmp_path: Path) -> None:
        """Pairs and single patches of other sizes, in one call."""
        generate(tmp_path)
        dataset = Scenes(tmp_path)
        pair = PatchPair(Patch(0, 30, 40, 96), Patch(1, 19, 24, 32))
        samples = dataset.__getitems__([pair, Patch(0, 0, 0, 96)])
        assert [len(sample['image']) for sample in samples] == [4, 2]


def test_resize_patch() -> None:
    image = torch.arange(16.0).reshape(1, 4, 4)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    bigger, mask = resize_patch(image, valid, 8)
    assert bigger.shape == (1, 8, 8)
    assert mask.all()
    assert bigger.mean() == pytest.approx(7.5)
    valid[0, 0, 0] = False
    _, mask = resize_patch(image, valid, 2)
    assert not mask[0, 0, 0]
    assert mask[0, 1, 1]
