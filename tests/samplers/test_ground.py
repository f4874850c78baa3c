# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Every place on the ground is as likely, however many scenes show it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from pyproj import Transformer

from tests.data.geotiff.data import ORIGIN, write_scene
from torchgeo_cmid.datasets import Patch, Scenes, split_by_area
from torchgeo_cmid.samplers import GriddedScenePatchSampler, RandomScenePatchSampler
from torchgeo_cmid.samplers.ground import Ground
from torchgeo_cmid.samplers.overlap import Integers
from torchgeo_cmid.samplers.patches import everywhere

NUMBER = 20_000


def centres(dataset: Scenes, size: int, number: int = NUMBER) -> np.ndarray:
    """Centres (n, 2) of patches, in the CRS of their scenes."""
    sampler = RandomScenePatchSampler(dataset, size=size, length=number)
    return np.array(
        [
            dataset.scenes[patch.scene].transform
            * (patch.col + size / 2, patch.row + size / 2)
            for patch in sampler
        ]
    )


def test_what_several_scenes_show_counts_once(tmp_path: Path) -> None:
    x, y = ORIGIN
    shape = (40, 100)
    write_scene(tmp_path / 'a.tif', bands=1, size=shape)
    for i in range(4):  # all four over the right half of the first
        write_scene(
            tmp_path / f'b{i}.tif', bands=1, size=shape, origin=(x + 1500, y), seed=i
        )
    places = (centres(Scenes(tmp_path), 16)[:, 0] - x) / 30
    counts, _ = np.histogram(places, bins=np.linspace(8, 142, 11))
    np.testing.assert_allclose(counts / NUMBER, 0.1, atol=0.012)


def test_few_are_drawn_in_vain(tmp_path: Path) -> None:
    """In an archive of many dates of one place, each shifted a little."""
    x, y = ORIGIN
    for i in range(12):
        write_scene(
            tmp_path / f'{i}.tif', bands=1, size=160, origin=(x + 30 * i, y), seed=i
        )
    sampler = RandomScenePatchSampler(Scenes(tmp_path), size=16, length=1)
    drawn = sampler._draw(np.random.default_rng(0), 10_000)
    assert len(drawn) > 5000  # of those drawn evenly 1 in 12 would be kept
    counts = np.bincount(drawn[:, 0], minlength=12) / len(drawn)
    assert counts.max() < 2 / 12
    places = drawn[:, 2] + drawn[:, 0]  # columns of the first scene
    shares, _ = np.histogram(places, bins=np.linspace(0, 156, 7))
    np.testing.assert_allclose(shares / len(drawn), 1 / 6, atol=0.02)


def test_fill_of_one_scene_is_no_share_of_another(tmp_path: Path) -> None:
    y = ORIGIN[1]
    write_scene(tmp_path / 'a.tif', bands=1)
    write_scene(tmp_path / 'b.tif', bands=1, fill=0.5, nodata=0)
    places = (y - centres(Scenes(tmp_path, min_valid=1.0), 16)[:, 1]) / 30
    counts, _ = np.histogram(places, bins=np.linspace(8, 56.5, 5))
    np.testing.assert_allclose(counts / NUMBER, 0.25, atol=0.02)


def test_fill_between_the_probes(tmp_path: Path) -> None:
    """What clouds hide in all scenes but one is as likely as anything else."""
    side, size, number = 320, 16, 6
    # a part is 76 px, and no patch that is looked at touches a cloud
    y, x = np.mgrid[:side, :side] % 76
    clouds = (y - 26) ** 2 + (x - 26) ** 2 < 10**2
    write_scene(tmp_path / '0.tif', bands=1, size=side)
    for i in range(1, number):
        path = write_scene(tmp_path / f'{i}.tif', bands=1, size=side, nodata=0, seed=i)
        with rasterio.open(path, 'r+') as file:
            image = file.read()
            image[:, clouds] = 0
            file.write(image)
    dataset = Scenes(tmp_path, min_valid=0.9)
    sampler = RandomScenePatchSampler(dataset, size=size, length=NUMBER)
    _, rows, cols = np.array([patch[:3] for patch in sampler]).T
    half = size // 2
    hidden = clouds[rows + half, cols + half].mean()
    expected = clouds[half : 1 - half, half : 1 - half].mean()
    assert hidden == pytest.approx(expected, rel=0.08)
    # parts that are said to be shown more often than they are could not be made up for
    drawn = sampler._draw(np.random.default_rng(0), 2000)
    assert drawn.shape[1] == 3
    starts = sampler.parts.row, sampler.parts.col
    ends = starts[0] + sampler.parts.rows, starts[1] + sampler.parts.cols
    for scene, row, col in drawn[:200]:
        inside = (sampler.parts.scene == scene) & (starts[0] <= row) & (row < ends[0])
        inside &= (starts[1] <= col) & (col < ends[1])
        shown = sampler.parts.shown[inside].item()
        chance = sampler.ground.chance(*np.array([[scene], [row], [col]]))
        assert shown * chance <= 1


def test_around_a_pole(tmp_path: Path) -> None:
    res, side = 5000.0, 400
    path = write_scene(
        tmp_path / 'a.tif',
        bands=1,
        size=side,
        crs='EPSG:3413',
        res=res,
        origin=(-res * side / 2, res * side / 2),
    )
    radius = np.linalg.norm(centres(Scenes(path), 96), axis=1)
    counts, _ = np.histogram(radius, bins=np.array([0, 200, 400, 600]) * 1000)
    area = np.array([1, 3, 5])  # of the rings
    np.testing.assert_allclose(counts / area, (counts / area).mean(), rtol=0.12)


def test_overlap_across_crs_and_resolutions(tmp_path: Path) -> None:
    there = Transformer.from_crs('EPSG:32621', 'EPSG:32622', always_xy=True)
    corner = there.transform(ORIGIN[0] - 600, ORIGIN[1] + 600)
    write_scene(tmp_path / 'a.tif', bands=1, size=96)
    # the neighbouring zone's grid in a finer resolution, over all of the first
    write_scene(
        tmp_path / 'b.tif', bands=1, size=280, crs='EPSG:32622', res=20, origin=corner
    )
    dataset = Scenes(tmp_path)
    assert dataset.index.geometry.iloc[0].intersects(dataset.index.geometry.iloc[1])
    sampler = RandomScenePatchSampler(dataset, size=16, length=2000)
    assert sampler.ground.overlap.overlaps.all()
    scenes, rows, cols = np.array([patch[:3] for patch in sampler]).T
    chance = sampler.ground.chance(scenes, rows, cols)
    assert set(np.unique(chance)) == {0.5, 1.0}


@pytest.mark.parametrize('crs', ['EPSG:4326', 'EPSG:3857'])
def test_degrees_and_mercator(tmp_path: Path, crs: str) -> None:
    to_crs = Transformer.from_crs('EPSG:4326', crs, always_xy=True)
    left, top = to_crs.transform(10, 75)
    _, bottom = to_crs.transform(12, 0)
    path = write_scene(
        tmp_path / 'a.tif',
        bands=1,
        size=(400, 40),
        crs=crs,
        res=(top - bottom) / 400,
        origin=(left, top),
    )
    latitude = to_crs.transform(*centres(Scenes(path), 8).T, direction='INVERSE')[1]
    # areas grow with the sine of the latitude
    places = np.sin(np.radians(latitude))
    counts, _ = np.histogram(places, bins=np.linspace(places.min(), places.max(), 6))
    np.testing.assert_allclose(counts / NUMBER, 0.2, atol=0.02)


def test_antimeridian(tmp_path: Path) -> None:
    path = write_scene(
        tmp_path / 'a.tif', bands=1, crs='EPSG:32601', res=1000, origin=(320_000, 7e6)
    )
    sampler = RandomScenePatchSampler(Scenes(path), size=8, length=10)
    assert not sampler.ground.uneven.any()
    earth = 4 * np.pi * 6371**2
    assert sampler.ground.largest[0] * earth == pytest.approx(64, rel=0.02)


class TestRegionAndFill:
    def dataset(self, folder: Path) -> Scenes:
        for name in 'ab':
            write_scene(folder / f'{name}.tif', bands=1, fill=0.5, nodata=0, size=96)
        return Scenes(folder, min_valid=0.75)

    def test_no_patch_has_less(self, tmp_path: Path) -> None:
        dataset = self.dataset(tmp_path)
        split = split_by_area(dataset, 16, 0.3)
        train = RandomScenePatchSampler(
            dataset, size=16, length=200, allowed=split.train
        )
        val = GriddedScenePatchSampler(dataset, size=16, allowed=split.val)
        assert len(list(val)) > 4
        for patch in [*train, *val]:
            assert dataset[patch]['valid'].float().mean() >= 0.75

    def test_small_region_in_large_scene(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', bands=1, size=400)
        west, south, east, north = Scenes(path).index.geometry.iloc[0].bounds
        lon, lat = (west + east) / 2, (south + north) / 2
        dataset = Scenes(path, roi=[lon, lat, lon + 0.02, lat + 0.01])
        assert dataset.scenes[0].width < 60
        split = split_by_area(dataset, 12, 0.3)
        train = RandomScenePatchSampler(
            dataset, size=12, length=50, allowed=split.train
        )
        val = GriddedScenePatchSampler(dataset, size=12, allowed=split.val)
        assert len(list(train)) == 50
        assert len(val) >= 1

    def test_none_left(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', bands=1, fill=1.0, nodata=0)
        with pytest.raises(ValueError, match=r'no patch of 16 .* and has data enough'):
            RandomScenePatchSampler(Scenes(path, min_valid=0.1), size=16, length=1)

    def test_next_to_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr('torchgeo_cmid.samplers.patches.TRIES', 2**12)
        dataset = Scenes(write_scene(tmp_path / 'a.tif', bands=1, size=512))
        sampler = RandomScenePatchSampler(
            dataset,
            size=8,
            length=1,
            allowed=lambda scene, rows, cols, size: (rows == 0) & (cols == 0),
        )
        with pytest.raises(ValueError, match=r'of \d+ patches of 8 pixels 0 may be'):
            list(sampler)


class TestExample:
    """The one in the docstring of Ground, whose numbers a reader follows."""

    size = 20

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Scenes:
        x, y = ORIGIN
        for i in range(2):
            origin = (x + 500 * i, y)
            write_scene(tmp_path / f'{i}.tif', bands=1, size=100, res=10, origin=origin)
        return Scenes(tmp_path)

    def test_numbers(self, dataset: Scenes) -> None:
        ground = Ground(dataset, size=self.size, allowed=everywhere)
        scenes, cols = np.array([0, 0, 1, 1]), np.array([49, 50, 30, 31])
        chance = ground.chance(scenes, np.zeros_like(cols), cols)
        assert chance.tolist() == [1, 0.5, 0.5, 1]
        starts = np.tile(np.arange(81), 2)
        scenes = np.repeat([0, 1], 81)
        chance = ground.chance(scenes, np.zeros_like(starts), starts)
        centres = starts + 10 + 50 * scenes
        assert (centres.min(), centres.max()) == (10, 140)
        assert len(centres) == 162
        assert chance.sum() == 131 == len(np.unique(centres))
        # each column is as likely as any other
        assert set(np.bincount(centres, weights=chance)[10:]) == {1}
        parts = ground.divide()
        first = parts.scene == 0
        assert set(parts.col[first]) == {0, 20, 40, 60}
        for col, shown in zip(parts.col[first], parts.shown[first], strict=True):
            assert shown == (2 if col == 60 else 1)

    def test_plot(self, dataset: Scenes) -> None:
        ground = Ground(dataset, size=self.size, allowed=everywhere)
        patches = [Patch(0, 0, 0, 20), Patch(1, 30, 40, 20)]
        figure = ground.plot(patches)
        cells, drawn = collections(figure)
        numbers, corners = cells.get_array(), vertices(cells)
        assert numbers is not None
        assert set(numbers.tolist()) == {1, 2}
        # back to columns and rows of the first scene, a row and a column outside
        there = Transformer.from_crs('EPSG:4326', 'EPSG:32621', always_xy=True)
        x, y = there.transform(corners[..., 0], corners[..., 1])
        cols, rows = (x - ORIGIN[0]) / 10, (ORIGIN[1] - y) / 10
        assert (cols.min(), cols.max()) == pytest.approx((9.5, 140.5), abs=0.01)
        assert (rows.min(), rows.max()) == pytest.approx((9.5, 90.5), abs=0.01)
        twice = cols.mean(axis=1)[numbers == 2]
        assert (twice.min(), twice.max()) == pytest.approx((60, 90), abs=1.5)
        once = cols.mean(axis=1)[numbers == 1]
        assert not ((once > 62) & (once < 88)).any()
        # the cells of a scene cover its centres, once
        area = np.abs(np.ptp(cols, axis=1) * np.ptp(rows, axis=1)).sum()
        assert area == pytest.approx(2 * 81 * 81, rel=0.01)

        x, y = there.transform(*vertices(drawn).reshape(-1, 2).T)
        found = np.stack([(x - ORIGIN[0]) / 10, (ORIGIN[1] - y) / 10], axis=1)
        squares = [[(0, 0), (20, 0), (20, 20), (0, 20)]]
        squares.append([(90, 30), (110, 30), (110, 50), (90, 50)])
        np.testing.assert_allclose(found, np.reshape(squares, (-1, 2)), atol=0.01)
        (axes, bar) = figure.axes
        assert axes.get_title() == 'Ground: centres of patches of 20 pixels'
        assert len(axes.patches) == 2  # the footprints
        for patch, footprint in zip(
            axes.patches, ground.overlap.footprints, strict=True
        ):
            extent = patch.get_path().get_extents().bounds
            west, south, east, north = footprint.bounds
            assert extent == pytest.approx((west, south, east - west, north - south))
        assert bar.get_yticks().tolist() == [1, 2]
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [
            'footprints',
            'patches',
        ]

    def test_plot_leaves_out_what_is_not_drawn_from(self, dataset: Scenes) -> None:
        """Ground set aside for validation, and scenes that no patch fits into."""

        def allowed(scene: int, rows: Integers, cols: Integers, size: Any) -> Any:
            return (cols < 40) & (scene == 0)

        ground = Ground(dataset, size=self.size, allowed=allowed)
        cells, drawn = collections(ground.plot())
        there = Transformer.from_crs('EPSG:4326', 'EPSG:32621', always_xy=True)
        x, _ = there.transform(*vertices(cells).reshape(-1, 2).T)
        cols = (x - ORIGIN[0]) / 10
        assert cols.max() == pytest.approx(50, abs=2)
        assert set(np.asarray(cells.get_array()).tolist()) == {1}
        assert not drawn.get_paths()

    def test_plot_at_the_antimeridian(self, tmp_path: Path) -> None:
        path = write_scene(
            tmp_path / 'a.tif', crs='EPSG:32601', res=1000, origin=(320_000, 7e6)
        )
        cells, _ = collections(Ground(Scenes(path), 8, everywhere).plot())
        width = np.ptp(vertices(cells)[..., 0], axis=1)
        assert len(width) > 100
        assert width.max() < 1


def collections(figure: Figure) -> tuple[PolyCollection, PolyCollection]:
    """The cells and the patches of a plot."""
    cells, patches = figure.axes[0].collections
    assert isinstance(cells, PolyCollection)
    assert isinstance(patches, PolyCollection)
    plt.close(figure)
    return cells, patches


def vertices(cells: PolyCollection) -> np.ndarray:
    """Corners (n, 4, 2)."""
    return np.array([path.vertices[:4] for path in cells.get_paths()])
