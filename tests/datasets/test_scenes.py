# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes are found, opened, read in their own grid, and refused with a clear error."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples

from tests.data.geotiff.data import ORIGIN, generate, write_scene
from torchgeo_cmid.datasets import Patch, Scenes
from torchgeo_cmid.datasets.batch import stack_patches


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read().astype(np.float32)


def change(path: Path, row: int, col: int, value: float) -> None:
    """Overwrite one pixel of the first band."""
    with rasterio.open(path, 'r+') as file:
        image = file.read(1)
        image[row, col] = value
        file.write(image, 1)


class TestFiles:
    def test_folder_is_searched_recursively_in_any_case(self, tmp_path: Path) -> None:
        names = ['b.tif', 'A.TIF', 'sub/c.tiff', '[2020]/d.Tiff', '.hidden.tif']
        for name in names:
            write_scene(tmp_path / name, size=8)
        (tmp_path / 'notes.txt').write_text('no raster')
        (tmp_path / 'folder.tif').mkdir()
        found = [scene.path for scene in Scenes(tmp_path).scenes]
        assert found == sorted(str(tmp_path / name) for name in names[:-1])
        assert len(Scenes(str(tmp_path / '[2020]'))) == 1

    def test_files_globs_and_lists(self, tmp_path: Path) -> None:
        files = generate(tmp_path, 3, size=8)
        assert len(Scenes(files[0])) == 1
        assert len(Scenes(f'{tmp_path}/scene_[01].tif')) == 2
        assert len(Scenes([files[0], f'{tmp_path}/*.tif'])) == 3

    @pytest.mark.parametrize(
        ('name', 'message'),
        [
            ('empty', 'holds no .tif or .tiff file'),
            ('missing', 'no such file or folder'),
            ('*.tif', 'glob matches no file'),
        ],
    )
    def test_nothing_found(self, tmp_path: Path, name: str, message: str) -> None:
        (tmp_path / 'empty').mkdir()
        with pytest.raises(FileNotFoundError, match=message) as error:
            Scenes(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)

    def test_no_paths(self) -> None:
        with pytest.raises(FileNotFoundError, match='paths is empty'):
            Scenes([])


class TestBands:
    def test_all_of_the_first_file(self, tmp_path: Path) -> None:
        assert Scenes(write_scene(tmp_path / 'a.tif', bands=4)).bands == (1, 2, 3, 4)

    @pytest.mark.parametrize('bands', [['nir', 'red'], [3, 1], ['nir', 1]])
    def test_by_name_and_number(self, tmp_path: Path, bands: list[int | str]) -> None:
        names = ['red', 'green', 'nir']
        path = write_scene(tmp_path / 'a.tif', bands=3, descriptions=names)
        image = Scenes(path, bands)[Patch(0, 0, 0, 64)]['image'].numpy()
        np.testing.assert_array_equal(image, read(path)[[2, 0]])

    def test_names_are_looked_up_in_each_file(self, tmp_path: Path) -> None:
        a = write_scene(tmp_path / 'a.tif', bands=2, descriptions=['red', 'nir'])
        b = write_scene(tmp_path / 'b.tif', bands=2, descriptions=['nir', 'red'])
        dataset = Scenes([a, b], ['nir'])
        assert [scene.indexes for scene in dataset.scenes] == [(2,), (1,)]

    @pytest.mark.parametrize('band', ['swir', 0, 4])
    def test_missing(self, tmp_path: Path, band: int | str) -> None:
        names = ['red', 'green', 'nir']
        path = write_scene(tmp_path / 'a.tif', bands=3, descriptions=names)
        with pytest.raises(ValueError, match=rf"a.tif: no band {band!r}.*'nir', 1, 2"):
            Scenes(path, [band])

    def test_empty(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match='bands is empty'):
            Scenes(write_scene(tmp_path / 'a.tif'), [])

    def test_files_with_different_counts(self, tmp_path: Path) -> None:
        write_scene(tmp_path / 'a.tif', bands=3)
        write_scene(tmp_path / 'b.tif', bands=4)
        with pytest.raises(ValueError, match=r'b.tif has 4 bands.*a.tif has 3'):
            Scenes(tmp_path)
        assert Scenes(tmp_path, [1, 3]).bands == (1, 3)


class TestSample:
    def test_window_in_the_grid_of_its_own_scene(self, tmp_path: Path) -> None:
        a = write_scene(tmp_path / 'a.tif', dtype='uint8')
        b = write_scene(tmp_path / 'b.tif', dtype='float32', crs='EPSG:32622', res=10)
        dataset = Scenes([a, b])
        sample = dataset[Patch(1, 5, 20, 32)]
        assert sample['image'].dtype == torch.float32
        assert sample['valid'].dtype == torch.bool
        assert sample['valid'].shape == (1, 32, 32)
        assert sample['valid'].all()
        expected = read(b)[:, 5:37, 20:52]
        np.testing.assert_array_equal(sample['image'].numpy(), expected)
        x, y = ORIGIN[0] + 200, ORIGIN[1] - 50
        transform = torch.tensor([10, 0, x, 0, -10, y, 0, 0, 1])
        torch.testing.assert_close(sample['transform'], transform)

    def test_same_as_raster_dataset(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif')
        sample = Scenes(path)[Patch(0, 5, 20, 32)]
        x, y = ORIGIN[0] + 20 * 30, ORIGIN[1] - 5 * 30
        expected = RasterDataset(path)[x : x + 960, y - 960 : y]
        for key in ['image', 'bounds', 'transform']:
            torch.testing.assert_close(sample[key], expected[key], msg=key)

    def test_rotated_grid(self, tmp_path: Path) -> None:
        turn = Affine.translation(*ORIGIN) @ Affine.rotation(30) @ Affine.scale(30, -30)
        path = write_scene(tmp_path / 'a.tif', transform=turn)
        sample = Scenes(path)[Patch(0, 0, 0, 32)]
        np.testing.assert_array_equal(sample['image'], read(path)[:, :32, :32])
        torch.testing.assert_close(sample['transform'], torch.tensor(tuple(turn)))

    def test_transforms(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif')
        dataset = Scenes(path, transforms=lambda sample: {'image': sample['valid']})
        assert set(dataset[Patch(0, 0, 0, 8)]) == {'image'}

    def test_workers_read_the_same(self, tmp_path: Path) -> None:
        dataset = Scenes(generate(tmp_path, 2))
        patches = [Patch(i % 2, i, 2 * i, 16) for i in range(8)]
        expected = stack_samples([dataset[patch] for patch in patches])
        loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(
            dataset,
            batch_size=8,
            sampler=patches,  # type: ignore[arg-type]
            num_workers=1,
            collate_fn=stack_samples,
        )
        batch = next(iter(loader))
        for key, value in expected.items():
            assert torch.equal(batch[key], value)

    @pytest.mark.parametrize('num_workers', [0, 1])
    def test_batches_are_read_in_place(self, tmp_path: Path, num_workers: int) -> None:
        dataset = Scenes(generate(tmp_path, 2, fill=0.3, nodata=0))
        patches = [Patch(i % 2, i, 2 * i, 16) for i in range(8)]
        expected = stack_samples([dataset[patch] for patch in patches])
        loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(
            dataset,
            batch_size=4,
            sampler=patches,  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=stack_patches,
        )
        batches = list(loader)
        for key, value in expected.items():
            assert torch.equal(torch.cat([batch[key] for batch in batches]), value)

        samples = dataset.__getitems__(patches)
        batch = stack_patches(samples)['image']
        assert batch.data_ptr() == samples[0]['image'].data_ptr()
        for order in [samples[::-1], samples[:4]]:  # not the batch that was read
            batch = stack_patches(order)['image']
            assert batch.data_ptr() != samples[0]['image'].data_ptr()
            assert torch.equal(batch, stack_samples(order)['image'])

    def test_transformed_images_are_stacked(self, tmp_path: Path) -> None:
        def double(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return sample | {'image': sample['image'] * 2}

        path = write_scene(tmp_path / 'a.tif')
        patches = [Patch(0, i, i, 16) for i in range(3)]
        samples = Scenes(path, transforms=double).__getitems__(patches)
        expected = stack_samples(Scenes(path).__getitems__(patches))
        assert torch.equal(stack_patches(samples)['image'], expected['image'] * 2)

    def test_patches_of_several_sizes(self, tmp_path: Path) -> None:
        dataset = Scenes(write_scene(tmp_path / 'a.tif'))
        patches = [Patch(0, 0, 0, 8), Patch(0, 0, 0, 16)]
        sizes = [s['image'].shape[-1] for s in dataset.__getitems__(patches)]
        assert sizes == [8, 16]

    def test_pickle(self, tmp_path: Path) -> None:
        dataset = Scenes(write_scene(tmp_path / 'a.tif'))
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.scenes == dataset.scenes


class TestIndex:
    def test_footprints_in_longitude_and_latitude(self, tmp_path: Path) -> None:
        generate(tmp_path, 2)
        write_scene(tmp_path / 'z.tif', crs='EPSG:4326', res=0.01, origin=(10, 50))
        dataset = Scenes(tmp_path)
        assert len(dataset) == 3
        assert dataset.crs.to_epsg() == 4326
        bounds = dataset.index.geometry.iloc[2].bounds
        assert bounds == pytest.approx((10, 49.36, 10.64, 50))
        assert dataset.index.filepath.iloc[2].endswith('z.tif')
        assert 'size: 3' in str(dataset)

    def test_cut_at_the_antimeridian(self, tmp_path: Path) -> None:
        path = write_scene(
            tmp_path / 'a.tif', crs='EPSG:32601', res=1000, origin=(320_000, 7e6)
        )
        footprint = Scenes(path).index.geometry.iloc[0]
        assert footprint.geom_type == 'MultiPolygon'
        assert footprint.area < 2

    def test_longitudes_beyond_180(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', crs='EPSG:4326', res=1, origin=(150, 40))
        footprint = Scenes(path).index.geometry.iloc[0]
        assert footprint.bounds == pytest.approx((-180, -24, 180, 40))
        assert footprint.area == pytest.approx(64 * 64)

    def test_files_that_have_changed(self, tmp_path: Path) -> None:
        """In a notebook, say: the file is written anew, and the dataset made anew."""
        path = write_scene(tmp_path / 'a.tif', crs='EPSG:32633')
        first = Scenes(path)
        write_scene(path, crs='EPSG:32634', seed=1)
        second = Scenes(path)
        assert first.scenes[0].crs == CRS.from_epsg(32633)
        assert second.scenes[0].crs == CRS.from_epsg(32634)
        with rasterio.open(path) as file:
            expected = file.read(window=((0, 8), (0, 8)))
        assert (second[Patch(0, 0, 0, 8)]['image'].numpy() == expected).all()


class TestFill:
    @pytest.mark.parametrize('tag', [True, False])
    def test_takes_the_mean_of_the_valid_pixels(
        self, tmp_path: Path, tag: bool
    ) -> None:
        path = write_scene(tmp_path / 'a.tif', fill=0.25, nodata=0 if tag else None)
        sample = Scenes(path, nodata=None if tag else 0)[Patch(0, 0, 0, 64)]
        assert not sample['valid'][:, :16].any()
        assert sample['valid'][:, 16:].all()
        mean = read(path)[:, 16:].mean(axis=(1, 2))
        fill = sample['image'][:, :16]
        expected = torch.tensor(mean)[:, None, None].expand_as(fill)
        torch.testing.assert_close(fill, expected)
        np.testing.assert_array_equal(sample['image'][:, 16:], read(path)[:, 16:])

    def test_one_band_without_data_is_enough(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', nodata=0)
        change(path, 3, 4, 0)
        valid = Scenes(path)[Patch(0, 0, 0, 64)]['valid'][0]
        assert (~valid).nonzero().tolist() == [[3, 4]]

    def test_nothing_but_fill(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', fill=0.5, nodata=0)
        sample = Scenes(path)[Patch(0, 0, 0, 32)]
        assert not sample['valid'].any()
        assert not sample['image'].any()

    def test_nan_that_is_declared(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', dtype='float32')
        change(path, 3, 4, np.nan)
        sample = Scenes(path, nodata=float('nan'))[Patch(0, 0, 0, 64)]
        assert (~sample['valid'][0]).nonzero().tolist() == [[3, 4]]
        assert sample['image'].isfinite().all()

    @pytest.mark.parametrize('value', [-np.inf, np.inf])
    def test_not_finite_and_not_declared(self, tmp_path: Path, value: float) -> None:
        path = write_scene(tmp_path / 'a.tif', dtype='float32')
        change(path, 13, 14, value)
        dataset = Scenes(path)
        dataset[Patch(0, 14, 0, 8)]
        message = r'a.tif, rows 8 to 16, columns 8 to 16: pixels that are NaN'
        with pytest.raises(ValueError, match=message):
            dataset[Patch(0, 8, 8, 8)]

    def test_alpha_is_a_mask_and_no_band(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', bands=4, dtype='uint8')
        with rasterio.open(path, 'r+') as file:
            file.colorinterp = [
                ColorInterp.red,
                ColorInterp.green,
                ColorInterp.blue,
                ColorInterp.alpha,
            ]
            alpha = np.full((64, 64), 255, dtype=np.uint8)
            alpha[:8] = 0
            file.write(alpha, 4)
        dataset = Scenes(path)
        assert dataset.bands == (1, 2, 3)
        valid = dataset[Patch(0, 0, 0, 64)]['valid'][0]
        assert torch.equal(valid, torch.from_numpy(alpha > 0))


class TestBadFiles:
    @pytest.mark.parametrize('content', [b'', b'no raster at all'])
    def test_no_raster(self, tmp_path: Path, content: bytes) -> None:
        generate(tmp_path, 1)
        (tmp_path / 'bad.tif').write_bytes(content)
        with pytest.raises(OSError, match=r'bad.tif: not a readable raster'):
            Scenes(tmp_path)

    @pytest.mark.parametrize('num_workers', [0, 1])
    def test_truncated_names_the_file(self, tmp_path: Path, num_workers: int) -> None:
        path = write_scene(tmp_path / 'cut.tif', size=128)
        dataset = Scenes(path)
        path.write_bytes(path.read_bytes()[:-20_000])
        with pytest.raises(OSError, match=r'cut.tif: truncated, it has 78766 bytes'):
            Scenes(path)
        loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(
            dataset,
            sampler=[Patch(0, 64, 64, 64)],  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=stack_samples,
        )
        with pytest.raises(OSError, match=r'cut.tif, rows 64 to 128.*truncated'):
            next(iter(loader))

    def test_no_crs(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', crs=None)
        with pytest.raises(ValueError, match=r'a.tif: no coordinate reference system'):
            Scenes(path)

    @pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
    def test_no_geotransform(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', transform=Affine.identity())
        with pytest.raises(ValueError, match=r'a.tif: no geotransform'):
            Scenes(path)

    @pytest.mark.parametrize(
        'place',
        [{'crs': 'LOCAL_CS["site",UNIT["metre",1]]'}, {'origin': (1e12, 1e12)}],
        ids=['no place on Earth', 'beyond the Earth'],
    )
    def test_nowhere(self, tmp_path: Path, place: dict[str, Any]) -> None:
        path = write_scene(tmp_path / 'a.tif', **place)
        with pytest.raises(ValueError, match=r'a.tif: its outline has no longitude'):
            Scenes(path)

    def test_complex_pixels(self, tmp_path: Path) -> None:
        path = tmp_path / 'a.tif'
        with rasterio.open(
            path,
            'w',
            driver='GTiff',
            count=1,
            height=8,
            width=8,
            dtype='complex64',
            crs='EPSG:32621',
            transform=Affine(30, 0, 0, 0, -30, 0),
        ):
            pass
        with pytest.raises(ValueError, match=r'a.tif: pixels of band 1 are complex64'):
            Scenes(path)
