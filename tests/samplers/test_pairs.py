# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Pairs of patches show the same ground on two dates."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import Transformer

from tests.data.dates.data import CRS, generate, write_places
from tests.data.geotiff.data import write_scene
from torchgeo_cmid.datasets import Patch, PatchPair, Scenes, split_by_area
from torchgeo_cmid.samplers import GriddedScenePatchSampler, RandomScenePatchSampler
from torchgeo_cmid.samplers.pairs import OtherDates

REGEX = r'.*_(?P<date>\d{8})\.tif'
SIZE = 48


@pytest.fixture
def dataset(tmp_path: Path) -> Scenes:
    generate(tmp_path)
    return Scenes(tmp_path, filename_regex=REGEX)


def sampler(dataset: Scenes, **arguments: object) -> RandomScenePatchSampler:
    defaults: dict[str, object] = {'size': SIZE, 'length': 400, 'dates': 2}
    return RandomScenePatchSampler(dataset, **(defaults | arguments))  # type: ignore[arg-type]


def pairs_of(sampler: RandomScenePatchSampler) -> list[PatchPair]:
    pairs = list(sampler)
    assert all(isinstance(pair, PatchPair) for pair in pairs)
    return pairs  # type: ignore[return-value]


def corners(dataset: Scenes, patch: Patch) -> NDArray[np.float64]:
    """Corners of a patch in metres, in one CRS for all scenes, (5, 2), centre last."""
    scene = dataset.scenes[patch.scene]
    shares = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0.5, 0.5)]) * patch.size
    place = scene.transform @ (patch.col + shares[:, 0], patch.row + shares[:, 1])
    there = Transformer.from_crs(scene.crs.to_wkt(), CRS, always_xy=True)
    return np.stack(there.transform(*place), axis=1)


class TestPairs:
    def test_same_ground_on_another_date(self, dataset: Scenes) -> None:
        times = dataset.index.index
        other = 0
        for first, second in pairs_of(sampler(dataset)):
            assert first.size == SIZE
            if first == second:
                continue
            other += 1
            assert times[first.scene].left != times[second.scene].left
            coarse = max(abs(dataset.scenes[i].transform.a) for i in (0, 1))
            ground = corners(dataset, first), corners(dataset, second)
            assert np.abs(ground[0][-1] - ground[1][-1]).max() < 0.75 * coarse
            sides = [np.linalg.norm(g[0] - g[1]) for g in ground]
            assert sides[0] == pytest.approx(sides[1], abs=coarse)
        assert other > 200

    def test_pixels_follow_from_the_resolution(self, dataset: Scenes) -> None:
        sizes = {
            (p.first.scene, p.second.scene): p.second.size
            for p in pairs_of(sampler(dataset))
        }
        assert sizes[0, 1] == 16
        assert sizes[1, 0] == 144
        assert sizes[0, 2] == 48

    def test_every_other_date_is_as_likely(self, tmp_path: Path) -> None:
        for i in range(4):
            write_places(tmp_path / f'{i}_2024010{1 + i}.tif', size=(80, 80))
        stack = Scenes(tmp_path, filename_regex=REGEX)
        pairs = pairs_of(sampler(stack, length=6000))
        counts = Counter((pair.first.scene, pair.second.scene) for pair in pairs)
        assert len(counts) == 12  # 4 times 3: never the same
        shares = np.array(list(counts.values())) / counts.total()
        np.testing.assert_allclose(shares, 1 / 12, atol=0.02)

    def test_a_neighbour_of_the_same_date_is_no_other_date(
        self, tmp_path: Path
    ) -> None:
        """Tiles of one date overlap."""
        for name in ('a_20240105', 'b_20240105', 'c_20240106'):
            write_places(tmp_path / f'{name}.tif', size=(80, 80))
        stack = Scenes(tmp_path, filename_regex=REGEX)
        seen = {(p.first.scene, p.second.scene) for p in pairs_of(sampler(stack))}
        assert seen == {(0, 2), (1, 2), (2, 0), (2, 1)}

    def test_where_a_date_is_missing(self, dataset: Scenes) -> None:
        alone = [p for p in pairs_of(sampler(dataset)) if p.first.scene == 3]
        assert alone
        assert all(first == second for first, second in alone)

    def test_resolutions_too_far_apart(self, tmp_path: Path) -> None:
        write_places(tmp_path / 'a_20240105.tif', size=(60, 60))
        write_places(tmp_path / 'b_20240620.tif', res=1, size=(600, 600))
        stack = Scenes(tmp_path, filename_regex=REGEX)
        for pair in pairs_of(sampler(stack)):
            assert pair.first == pair.second

    def test_longitudes_beyond_180(self, tmp_path: Path) -> None:
        """The same ground at 189 degrees and at -171, and across 180."""
        for folder, lefts in {'a': (189.0, -171.0), 'b': (179.985, -180.015)}.items():
            for day, left in enumerate(lefts, 1):
                write_scene(
                    tmp_path / folder / f's_2024010{day}.tif',
                    crs='EPSG:4326',
                    res=1e-4,
                    size=300,
                    origin=(left, 45),
                )
            stack = Scenes(tmp_path / folder, filename_regex=REGEX)
            pairs = pairs_of(sampler(stack, size=32))
            assert all(pair.first.scene != pair.second.scene for pair in pairs)
            assert all(pair.first[1:] == pair.second[1:] for pair in pairs)

    def test_draws_next_to_one(self, dataset: Scenes) -> None:
        """Rounding takes no partner of another patch."""
        drawn = sampler(dataset)
        dates = OtherDates(drawn.ground.overlap, drawn.usable)
        patches = np.array(
            [pair.first[:3] for pair in pairs_of(sampler(dataset, length=512))]
        )
        low = dates._choose(patches, np.zeros(512))
        high = dates._choose(patches, np.full(512, np.nextafter(1, 0)))
        ends = [corners(dataset, Patch(*row))[-1] for row in high]
        starts = [corners(dataset, Patch(*row))[-1] for row in low]
        assert np.abs(np.array(ends) - starts).max() < 40

    def test_follows_from_seed_and_epoch(self, dataset: Scenes) -> None:
        one, two = sampler(dataset, seed=1), sampler(dataset, seed=1)
        assert list(one) == list(two)
        one.set_epoch(1)
        assert list(one) != list(two)
        two.set_epoch(1)
        assert list(one) == list(two)

    def test_goes_on_in_the_middle(self, dataset: Scenes) -> None:
        whole = list(sampler(dataset))
        rest = sampler(dataset)
        rest.first = 150
        assert list(rest) == whole[150:]

    def test_processes_share_one_draw(self, dataset: Scenes) -> None:
        whole = list(sampler(dataset))
        for rank in range(2):
            own = sampler(dataset, num_replicas=2, rank=rank)
            assert list(own) == list(islice(whole, rank, None, 2))

    def test_grid(self, dataset: Scenes) -> None:
        grid = GriddedScenePatchSampler(dataset, size=SIZE, dates=2)
        single = GriddedScenePatchSampler(dataset, size=SIZE)
        pairs = list(grid)
        assert len(pairs) == len(grid)
        assert [pair.first for pair in pairs] == list(single)  # type: ignore[union-attr]
        assert pairs == list(grid)
        assert any(pair.first != pair.second for pair in pairs)  # type: ignore[union-attr]

    def test_neither_date_leaves_its_side_of_the_split(self, dataset: Scenes) -> None:
        split = split_by_area(dataset, SIZE, 0.3)
        train = pairs_of(sampler(dataset, allowed=split.train))
        val = list(
            GriddedScenePatchSampler(dataset, size=SIZE, allowed=split.val, dates=2)
        )
        assert any(first.size != second.size for first, second in train)
        sides = []
        for pairs in (train, val):
            patches = {patch for pair in pairs for patch in pair}  # type: ignore[union-attr]
            sides.append(np.array([corners(dataset, patch) for patch in patches]))
        low = [side.min(axis=1) for side in sides]
        high = [side.max(axis=1) for side in sides]
        apart = (high[0][:, None] <= low[1]) | (high[1] <= low[0][:, None])
        assert apart.any(axis=2).all()

    def test_region_holds_both(self, tmp_path: Path, dataset: Scenes) -> None:
        scene = dataset.scenes[0]
        west, south, east, north = scene.footprint.bounds
        roi = [west, (south + north) / 2, east, north]
        cut = Scenes(tmp_path, filename_regex=REGEX, roi=roi)
        for pair in pairs_of(sampler(cut, length=100)):
            for patch in pair:
                rows, cols = np.array([patch.row]), np.array([patch.col])
                assert cut.scenes[patch.scene].eligible(rows, cols, patch.size).all()


class TestErrors:
    def test_no_dates(self, tmp_path: Path) -> None:
        generate(tmp_path)
        message = r'no two of 4 scenes .* \(times known: 0\): let filename_regex have'
        with pytest.raises(ValueError, match=message):
            sampler(Scenes(tmp_path))

    def test_one_date(self, tmp_path: Path) -> None:
        for name in ('a', 'b'):
            write_places(tmp_path / f'{name}_20240105.tif')
        with pytest.raises(ValueError, match='dates=2, but no two of 2 scenes'):
            sampler(Scenes(tmp_path, filename_regex=REGEX))

    def test_one_day(self, tmp_path: Path) -> None:
        """The granules of one overpass follow each other in seconds."""
        for name in ('a_20240105T101010', 'b_20240105T101024'):
            write_places(tmp_path / f'{name}.tif')
        regex = r'._(?P<date>\d{8}T\d{6})\.tif'
        stack = Scenes(tmp_path, filename_regex=regex, date_format='%Y%m%dT%H%M%S')
        with pytest.raises(ValueError, match=r'on different days \(times known: 2\)'):
            sampler(stack)

    def test_places_of_one_date_each(self, tmp_path: Path) -> None:
        write_places(tmp_path / 'a_20240105.tif')
        write_places(tmp_path / 'b_20240620.tif', shift=(20_000, 0))
        with pytest.raises(ValueError, match='dates=2, but no two of 2 scenes'):
            sampler(Scenes(tmp_path, filename_regex=REGEX))

    @pytest.mark.parametrize('dates', [0, 3])
    def test_number(self, dataset: Scenes, dates: int) -> None:
        with pytest.raises(ValueError, match=f'dates={dates} must be 1, or 2'):
            sampler(dataset, dates=dates)
        with pytest.raises(ValueError, match=f'dates={dates} must be 1, or 2'):
            GriddedScenePatchSampler(dataset, size=SIZE, dates=dates)
