# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Reads through the cache are those without it, whatever the scene."""

import os
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from safetensors.numpy import load_file

from tests.data.geotiff.data import write_scene
from tests.rasters.cached_scenes import (
    KINDS,
    PATCH,
    SIZE,
    Kind,
    assert_same,
    blocks,
    copy,
    mask,
    patches,
    sidecar,
)
from torchgeo_cmid.datasets import Patch, Scenes
from torchgeo_cmid.rasters import cache, raster
from torchgeo_cmid.rasters.source import Source


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small scenes hold many blocks, and any disk enough room."""
    monkeypatch.setattr(cache, 'BLOCK', 64)
    monkeypatch.setattr(cache, 'RESERVE', 0)


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file be opened and no pixel be decoded any more."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError('the file was opened')

    raster._open.cache_clear()
    monkeypatch.setattr(raster, '_open', fail)
    monkeypatch.setattr(Source, 'load', fail)


class TestPixels:
    @pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)
    def test_same_as_without(
        self, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = kind(tmp_path / 'data')
        expected, folder = Scenes(**arguments), tmp_path / 'cache'
        assert_same(Scenes(**arguments, cache=str(folder)), expected)  # fills it
        filled = {path: path.stat().st_mtime_ns for path in blocks(folder)}
        assert filled
        again = pickle.loads(pickle.dumps(Scenes(**arguments, cache=str(folder))))
        assert_same(again, expected)
        assert {path: path.stat().st_mtime_ns for path in blocks(folder)} == filled
        addresses = patches(expected)
        before = expected.__getitems__(addresses)
        no_decoding(monkeypatch)
        after = again.__getitems__(addresses)
        for a, b in zip(after, before, strict=True):
            assert a['image'].numpy().tobytes() == b['image'].numpy().tobytes()
            assert a['valid'].equal(b['valid'])

    def test_default_blocks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cache, 'BLOCK', 512)
        path = write_scene(tmp_path / 'a.tif', size=(700, 1300))
        assert_same(Scenes(path, cache=str(tmp_path / 'cache')), Scenes(path))
        (wide,) = (load_file(p) for p in blocks(tmp_path / 'cache') if p.stem == '1-0')
        assert wide['pixels'].dtype == np.uint16
        assert wide['pixels'].shape == (3, 188, 512)

    def test_many_bands_make_small_blocks(self) -> None:
        assert cache._size(Source('a.tif', tuple(range(1000)))) == cache.SMALLEST_BLOCK

    def test_pixels_that_must_not_be_are_refused_in_the_patch_alone(
        self, tmp_path: Path
    ) -> None:
        path = write_scene(tmp_path / 'a.tif', size=SIZE, dtype='float32')
        with rasterio.open(path, 'r+') as file:
            image = file.read()
            image[:, 60, 60] = np.inf
            file.write(image)
        dataset = Scenes(path, cache=str(tmp_path / 'cache'))
        for _ in range(2):
            with pytest.raises(ValueError, match=r'a\.tif, rows 30 to 78.*NaN'):
                dataset[Patch(0, 30, 30, PATCH)]
            image = dataset[Patch(0, 0, 0, PATCH)]['image']  # the same block
            assert image.equal(Scenes(path)[Patch(0, 0, 0, PATCH)]['image'])

    def test_damage_outside_of_the_patch(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', size=128)
        copy(path, tiled=True, blockxsize=32, blockysize=32, compress='deflate')
        with rasterio.open(path) as file:
            offset = int(file.get_tag_item('BLOCK_OFFSET_1_1', 'TIFF', bidx=1))
        with path.open('r+b') as raw:
            raw.seek(offset)
            raw.write(bytes(64))
        plain, cached = Scenes(path), Scenes(path, cache=str(tmp_path / 'cache'))
        assert cached[Patch(0, 0, 0, 32)]['image'].equal(
            plain[Patch(0, 0, 0, 32)]['image']
        )
        with pytest.raises(OSError, match=r'a\.tif, rows 32 to 64.*unreadable'):
            cached[Patch(0, 32, 32, 32)]

    def test_other_formats_are_read_as_without(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', size=SIZE)
        rasterio.shutil.copy(path, tmp_path / 'a.vrt', driver='VRT')
        dataset = Scenes(tmp_path / 'a.vrt', cache=str(tmp_path / 'cache'))
        assert_same(dataset, Scenes(path))
        assert not blocks(tmp_path / 'cache')


class TestChanges:
    def scene(self, folder: Path, seed: int = 0) -> Path:
        return write_scene(folder / 'a.tif', size=SIZE, seed=seed)

    def test_file(self, tmp_path: Path) -> None:
        """In this process, and in one that comes later."""
        dataset = Scenes(self.scene(tmp_path), cache=str(tmp_path / 'cache'))
        before = dataset[Patch(0, 0, 0, PATCH)]['image']
        time.sleep(0.02)
        path = self.scene(tmp_path, seed=1)
        with rasterio.open(path) as file:
            expected = file.read()[:, :PATCH, :PATCH].astype(np.float32)
        assert not np.array_equal(before, expected)
        for cached in (dataset, Scenes(path, cache=str(tmp_path / 'cache'))):
            image = cached[Patch(0, 0, 0, PATCH)]['image']
            np.testing.assert_array_equal(image, expected)

    @pytest.mark.parametrize('kind', [mask, sidecar])
    def test_mask(self, kind: Kind, tmp_path: Path) -> None:
        path = self.scene(tmp_path)
        dataset = Scenes(path, cache=str(tmp_path / 'cache'))
        assert dataset[Patch(0, 0, 0, PATCH)]['valid'].all()
        time.sleep(0.02)
        stat = path.stat()
        kind(tmp_path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        raster._open.cache_clear()
        dataset = Scenes(path, cache=str(tmp_path / 'cache'))
        assert not dataset[Patch(0, 0, 0, PATCH)]['valid'].all()

    def test_archive(self, tmp_path: Path) -> None:
        images = []
        for seed in range(2):
            with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
                file.write(self.scene(tmp_path, seed), 'a.tif')
            raster._open.cache_clear()
            path = f'/vsizip/{tmp_path}/a.zip/a.tif'
            dataset = Scenes(path, cache=str(tmp_path / 'cache'))
            images.append(dataset[Patch(0, 0, 0, PATCH)]['image'])
            time.sleep(0.02)
        assert not images[0].equal(images[1])

    def test_while_it_is_decoded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What may be of either file is not kept."""
        path, load = self.scene(tmp_path), Source.load

        def touch(self: Source, *args: Any, **kwargs: Any) -> Any:
            loaded = load(self, *args, **kwargs)
            os.utime(path, ns=(0, time.time_ns()))
            return loaded

        monkeypatch.setattr(Source, 'load', touch)
        dataset = Scenes(path, cache=str(tmp_path / 'cache'))
        assert_same(dataset, Scenes(path))
        assert not blocks(tmp_path / 'cache')

    def test_relative_paths(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = []
        for i, name in enumerate(('x', 'y')):
            path = self.scene(tmp_path / name, seed=i)
            os.utime(path, ns=(0, 0))
            monkeypatch.chdir(tmp_path / name)
            raster._open.cache_clear()
            dataset = Scenes('a.tif', cache='../cache')
            images.append(dataset[Patch(0, 0, 0, PATCH)]['image'])
        assert not images[0].equal(images[1])
        assert {path.name for path in tmp_path.iterdir()} == {'cache', 'x', 'y'}

    @pytest.mark.parametrize(
        ('path', 'stamped'),
        [
            ('/vsizip/{{{0}}}/b.tif', True),
            ('/vsigzip/{0}', True),
            ('zip://{0}!b.tif', True),
            ('file://{0}', True),
            ('/vsicurl/https://example.com{0}x', False),
            ('s3://bucket/a.tif', False),
        ],
    )
    def test_paths_of_gdal(self, path: str, stamped: bool, tmp_path: Path) -> None:
        file = tmp_path / 'a.bin'
        file.write_bytes(b'1')
        before = cache.take_stamp(path.format(file))
        file.write_bytes(b'12')
        assert (cache.take_stamp(path.format(file)) != before) is stamped
        assert before is not None

    def test_memory_is_not_shared(self) -> None:
        assert cache.take_stamp('/vsimem/a.tif') is None
        assert cache.take_stamp('/vsizip//vsimem/a.zip/a.tif') is None
