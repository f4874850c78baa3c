# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Sensors, regions, fill and bad files reach the data module from a config."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from jsonargparse import ArgumentParser

from tests.data.geotiff.data import generate, write_scene
from torchgeo_cmid.datamodules import RasterFolderDataModule


def data_module(folder: Path, **arguments: Any) -> RasterFolderDataModule:
    defaults: dict[str, Any] = {'patch_size': 32, 'length': 16, 'batch_size': 8}
    return RasterFolderDataModule(str(folder), **defaults | arguments)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    generate(tmp_path / 'scenes', 3, size=(96, 64))
    return tmp_path / 'scenes'


class TestRastersAsTheyAre:
    def test_sensors_of_a_config(self, tmp_path: Path) -> None:
        write_scene(tmp_path / 'a' / 'a.tif', size=96)
        for i, band in enumerate(['B1', 'B2', 'B3']):
            write_scene(
                tmp_path / 'b' / f'b_{band}.tif',
                bands=1,
                size=96,
                seed=i,
                dtype='uint8',
                origin=(800_000, 7_200_000),
            )
        regex = r'.*_(?P<band>B\d)\.tif'
        parser = ArgumentParser()
        parser.add_class_arguments(RasterFolderDataModule, 'data')
        config = parser.parse_object(
            {
                'data': {
                    'sensors': [
                        {
                            'paths': [str(tmp_path / 'a')],
                            'bands': [3, 1],
                            'nodata': float('nan'),
                        },
                        {
                            'paths': str(tmp_path / 'b'),
                            'filename_regex': regex,
                            'bands': ['B3', 'B1'],
                            'scale': 40,
                        },
                    ],
                    'roi': [-60, 60, -50, 70],
                    'patch_size': 32,
                    'length': 16,
                    'batch_size': 16,
                }
            }
        )
        module = parser.instantiate_classes(config).data
        module.setup('fit')
        batch = next(iter(module.train_dataloader()))
        assert batch['image'].shape == (16, 2, 32, 32)
        assert {patch.scene for patch in module.train_sampler} == {0, 1}

    def test_no_patch_of_fill(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', size=128, fill=0.5)
        module = data_module(path, nodata=0, min_valid=0.9, val_split=0.3)
        module.setup('fit')
        for loader in (module.train_dataloader(), module.val_dataloader()):
            shares = [b['valid'].float().mean(dim=(1, 2, 3)).min() for b in loader]
            assert shares
            assert min(shares) >= 0.9

    def test_default_length_counts_ground_once(self, scenes: Path) -> None:
        for name in 'xyz':
            write_scene(scenes / f'{name}.tif', size=(96, 64))
        module = data_module(scenes, length=None, val_split=0.0)
        module.setup('fit')
        assert len(module.train_sampler) == 3 * 3 * 2

    def test_statistics_ignore_fill_between_bands(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', bands=2, size=32)
        with rasterio.open(path, 'r+') as file:
            image = file.read()
            image[0, :10] = 0  # of one band alone: the pixels count for neither
            file.write(image)
        module = data_module(path, val_split=0.0, nodata=0)
        module.setup('fit')
        module.train_dataloader()
        expected = image[:, 10:].reshape(2, -1).astype(float)
        np.testing.assert_allclose(module.mean, expected.mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(module.std, expected.std(axis=1), rtol=1e-6)

    def test_bad_files_are_skipped_with_a_count(self, scenes: Path) -> None:
        (scenes / 'bad.tif').write_bytes(b'no raster')
        with pytest.raises(OSError, match=r'bad.tif: not a readable raster'):
            data_module(scenes).setup('fit')
        module = data_module(scenes, skip_bad_files=True)
        with pytest.warns(UserWarning, match=r'1 bad scenes are skipped: .*bad.tif'):
            module.setup('fit')
        assert len(module.scenes) == 3
