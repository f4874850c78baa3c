# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Files of one band each are one scene, where their names and their ground say so."""

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from torchgeo.datasets import Sentinel2

from tests.data.geotiff.data import write_scene
from torchgeo_cmid.datasets import Patch, Scenes
from torchgeo_cmid.rasters import timeouts
from torchgeo_cmid.rasters.grouping import guess_bands

TOGETHER = 'put together from files of one band each'


def write(folder: Path, *names: str, **arguments: Any) -> None:
    for seed, name in enumerate(names):
        given = {'bands': 1, 'seed': seed} | arguments
        write_scene(folder / name, **given)


def scenes(folder: Path, **arguments: Any) -> tuple[Scenes, list[str]]:
    """The scenes of a folder, and what was said of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        dataset = Scenes(folder, **arguments)
    return dataset, [str(w.message) for w in caught if TOGETHER in str(w.message)]


class TestTogether:
    @pytest.mark.parametrize(
        ('form', 'bands'),
        [
            ('S_20200101_{}.tif', ['B1', 'B2', 'B10']),
            ('T33_20200101T1_{}.tif', ['B02', 'B03', 'B8A', 'B11']),
            ('LC08_L2SP_20200101_02_T1_{}.TIF', ['SR_B2', 'SR_B3', 'SR_B4']),
            ('{}.tif', ['blue', 'green', 'nir', 'red']),
            ('a-{}-b.tiff', ['Blue', 'Green', 'NIR']),
            ('x_{}.tif', ['band1', 'band2']),
            ('x.{}.tif', ['nir08', 'swir16', 'swir22']),
            ('s1_{}.tif', ['vh', 'vv']),
        ],
    )
    @pytest.mark.parametrize('cached', [False, True])
    def test_names_of_bands(
        self, cached: bool, form: str, bands: list[str], tmp_path: Path
    ) -> None:
        write(tmp_path / 'in', *(form.format(band) for band in bands))
        arguments = {'cache': str(tmp_path / 'cache')} if cached else {}
        for _ in range(2):
            dataset, said = scenes(tmp_path / 'in', **arguments)
            assert len(dataset) == 1
            assert dataset.bands == tuple(bands)
            assert len(said) == 1
            assert f'1 scenes are {TOGETHER}' in said[0]
            assert '\n' not in said[0]
            sample = dataset[Patch(0, 0, 0, 64)]
            for band, image in zip(bands, sample['image'], strict=True):
                with rasterio.open(tmp_path / 'in' / form.format(band)) as file:
                    np.testing.assert_array_equal(image, file.read(1))

    def test_bands_of_another_resolution(self, tmp_path: Path) -> None:
        write(tmp_path, 'a_B2.tif', 'a_B3.tif')
        write(tmp_path, 'a_B8.tif', res=15, size=128)
        dataset, _ = scenes(tmp_path)
        assert [scene.height for scene in dataset.scenes] == [128]
        assert dataset.bands == ('B2', 'B3', 'B8')

    def test_bands_by_name(self, tmp_path: Path) -> None:
        write(tmp_path, 'a_B2.tif', 'a_B3.tif', 'a_B4.tif')
        dataset, _ = scenes(tmp_path, bands=['B4', 'B2'])
        assert dataset.bands == ('B4', 'B2')
        with pytest.raises(ValueError, match=r"the bands \['B9'\] are missing"):
            scenes(tmp_path, bands=['B9'])

    def test_dates_apart(self, tmp_path: Path) -> None:
        names = [
            f'a_2020010{day}_{band}.tif' for day in (1, 2) for band in ('B2', 'B3')
        ]
        write(tmp_path, *names)
        dataset, said = scenes(tmp_path)
        assert len(dataset) == 2
        assert f'2 scenes are {TOGETHER}' in said[0]

    @pytest.mark.parametrize(
        'quality',
        [
            *('QA_PIXEL', 'QA_RADSAT', 'SR_QA_AEROSOL', 'SCL', 'QA60', 'MSK_CLDPRB'),
            *('cloud', 'clouds', 'cloud_mask', 'mask', 'AOT', 'TCI', 'udm2', 'BQA'),
        ],
    )
    def test_quality_is_no_band(self, quality: str, tmp_path: Path) -> None:
        write(tmp_path, 'a_B2.tif', 'a_B3.tif', f'a_{quality}.tif', dtype='uint8')
        dataset, _ = scenes(tmp_path)
        assert len(dataset) == 1
        assert dataset.bands == ('B2', 'B3')

    def test_product_tree(self) -> None:
        tree = '/p.SAFE/GRANULE/L2A'
        files = [
            f'{tree}/IMG_DATA/R10m/T33_20200101_B02_10m.jp2',
            f'{tree}/IMG_DATA/R20m/T33_20200101_B02_20m.jp2',
            f'{tree}/IMG_DATA/R20m/T33_20200101_B11_20m.jp2',
            f'{tree}/IMG_DATA/R20m/T33_20200101_SCL_20m.jp2',
            f'{tree}/QI_DATA/MSK_CLDPRB_20m.jp2',
        ]
        assert guess_bands(files) == [{'B02': files[0], 'B11': files[2]}]


class TestApart:
    @pytest.mark.parametrize(
        'names',
        [
            ('site_A.tif', 'site_B.tif'),
            ('HARV_001.tif', 'HARV_002.tif'),
            ('top_1_IRRG.tif', 'top_1_RGB.tif'),
            ('B1x.tif', 'B2x.tif'),
            ('infrared.tif', 'red1.tif'),
            ('a_B2.tif', 'b_B3.tif'),
            ('in/a_B2.tif', 'out/a_B3.tif'),
            ('a_B2.tif',),
            ('cloud_1.tif', 'cloud_2.tif'),
        ],
    )
    def test_other_names(self, names: tuple[str, ...], tmp_path: Path) -> None:
        write(tmp_path, *names)
        dataset, said = scenes(tmp_path)
        assert len(dataset) == len(names)
        assert not said

    @pytest.mark.parametrize(
        'other',
        [
            {'origin': (760_000, 7_200_000)},
            {'crs': 'EPSG:32622'},
            {'size': 80},
            {'bands': 3},
        ],
    )
    def test_other_ground_or_bands(self, other: dict[str, Any], tmp_path: Path) -> None:
        bands = other.get('bands', 1)
        write(tmp_path, 'a_B1.tif', bands=bands)
        write(tmp_path, 'a_B2.tif', **other)
        dataset, said = scenes(tmp_path)
        assert len(dataset) == 2
        assert not said

    def test_numbers_of_bands(self, tmp_path: Path) -> None:
        write(tmp_path, 'a_B1.tif', 'a_B2.tif')
        dataset, said = scenes(tmp_path, bands=[1])
        assert len(dataset) == 2
        assert not said


class TestIncomplete:
    @pytest.mark.parametrize(
        'other', ['S_20200201_B2.tif', 'S_20200301_RGB.tif', 'a_VAA.tif']
    )
    def test_file_that_stands_alone(self, tmp_path: Path, other: str) -> None:
        """Regression: it was said to lack the very band that it holds."""
        write(tmp_path, 'S_20200101_B2.tif', 'S_20200101_B3.tif', other)
        message = rf"{other} stands alone .* some of \['B2', 'B3'\] of its scene"
        with pytest.raises(ValueError, match=message):
            Scenes(tmp_path)
        with pytest.warns(UserWarning, match='bad scenes are skipped'):
            assert len(Scenes(tmp_path, skip_bad_files=True).scenes) == 1


class TestPattern:
    @pytest.mark.parametrize('pattern', [r'(\w+)+(?P<band>X)', r'(?P<band>(a|a)*)\.$'])
    def test_that_does_not_end(
        self, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timeouts, 'PATTERN', 1)
        write(tmp_path, 'a' * 60 + '.tif')
        start = time.monotonic()
        with pytest.raises(ValueError, match=r'filename_regex=.* takes more than 1 s'):
            Scenes(tmp_path, filename_regex=pattern)
        assert time.monotonic() - start < 20

    def test_that_is_too_long(self, tmp_path: Path) -> None:
        write(tmp_path, 'a.tif')
        pattern = 'x{99999999999999999999}(?P<band>a)'
        with pytest.raises(ValueError, match='is no regular expression'):
            Scenes(tmp_path, filename_regex=pattern)


class TestResolutionInTheName:
    STOCK = Sentinel2.filename_regex.format(r'\d{2}m')
    DATE = '%Y%m%dT%H%M%S'

    @pytest.mark.parametrize('folders', [False, True])
    def test_pattern_of_torchgeo(self, folders: bool, tmp_path: Path) -> None:
        files = {}
        for i, (band, res) in enumerate([('B02', 10), ('B02', 20), ('B05', 20)]):
            home = tmp_path / f'IMG_DATA/R{res}m' if folders else tmp_path
            name = f'T33TVM_20220414T110747_{band}_{res}m.tif'
            size = 640 // res
            files[band, res] = home / name
            write_scene(home / name, bands=1, seed=i, res=res, size=size)
        dataset = Scenes(
            tmp_path, ['B05', 'B02'], filename_regex=self.STOCK, date_format=self.DATE
        )
        (scene,) = dataset.scenes
        assert [source.path for source in scene.sources] == [
            str(files['B05', 20]),
            str(files['B02', 10]),
        ]
        assert (scene.transform.a, scene.height) == (10, 64)
        image = dataset[Patch(0, 0, 0, 64)]['image']
        with rasterio.open(files['B02', 10]) as file:
            np.testing.assert_array_equal(image[1], file.read(1))
        with rasterio.open(files['B05', 20]) as file:
            coarse = file.read(1).repeat(2, axis=0).repeat(2, axis=1)
        np.testing.assert_array_equal(image[0], coarse)

    def test_dates_stay_apart(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            'T33TVM_20220414T110747_B02_10m.tif',
            'T33TVM_20220417T110747_B02_10m.tif',
        )
        dataset = Scenes(tmp_path, filename_regex=self.STOCK, date_format=self.DATE)
        assert len(dataset) == 2
