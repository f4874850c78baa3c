# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What is drawn follows from seed, epoch and rank; grids cover what they may."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from tests.data.geotiff.data import ORIGIN, generate, write_scene
from torchgeo_cmid.datasets import Patch, Scenes
from torchgeo_cmid.samplers import GriddedScenePatchSampler, RandomScenePatchSampler


@pytest.fixture
def dataset(tmp_path: Path) -> Scenes:
    return Scenes(generate(tmp_path, 3, bands=1))


class TestRandom:
    def test_patches_lie_within_their_scene(self, dataset: Scenes) -> None:
        patches = list(RandomScenePatchSampler(dataset, size=40, length=500))
        assert len(patches) == 500
        rows = [patch.row for patch in patches]
        cols = [patch.col for patch in patches]
        assert (min(rows), max(rows)) == (0, 24)
        assert (min(cols), max(cols)) == (0, 24)
        assert {patch.size for patch in patches} == {40}

    def test_same_seed_same_patches(self, dataset: Scenes) -> None:
        def draw(seed: int, epoch: int) -> list[Patch]:
            sampler = RandomScenePatchSampler(dataset, size=8, length=50, seed=seed)
            sampler.set_epoch(epoch)
            return list(sampler)

        assert draw(1, 0) == draw(1, 0)
        assert draw(1, 3) == draw(1, 3)
        assert draw(1, 0) != draw(1, 1)
        assert draw(1, 0) != draw(2, 0)
        assert draw(1, 1) != draw(2, 0)

    def test_every_batch_mixes_scenes(self, dataset: Scenes) -> None:
        patches = list(RandomScenePatchSampler(dataset, size=8, length=320))
        for start in range(0, 320, 32):
            scenes = {patch.scene for patch in patches[start : start + 32]}
            assert scenes == {0, 1, 2}

    @pytest.mark.parametrize('length', [60, 61])
    def test_processes_share_one_draw(self, dataset: Scenes, length: int) -> None:
        def draw(replicas: int, rank: int) -> list[Patch]:
            sampler = RandomScenePatchSampler(
                dataset, size=8, length=length, num_replicas=replicas, rank=rank
            )
            assert isinstance(sampler, DistributedSampler)
            patches = list(sampler)
            assert len(patches) == len(sampler)
            return patches

        ranks = [draw(2, 0), draw(2, 1)]
        assert len(ranks[0]) == len(ranks[1]) == (length + 1) // 2
        together = [patch for pair in zip(*ranks, strict=True) for patch in pair]
        if length % 2 == 0:
            assert together == draw(1, 0)
        assert len(set(together)) > 0.9 * len(together)

    def test_scenes_are_drawn_by_the_area_of_their_starts(self, tmp_path: Path) -> None:
        x, y = ORIGIN
        write_scene(tmp_path / 'a.tif', size=40, res=60)
        write_scene(tmp_path / 'b.tif', size=72, origin=(x + 1e5, y))
        write_scene(tmp_path / 'c.tif', size=30, origin=(x + 2e5, y))
        sampler = RandomScenePatchSampler(Scenes(tmp_path), size=32, length=20_000)
        drawn = np.bincount([patch.scene for patch in sampler], minlength=3) / 20_000
        weights = np.array([9**2 * 60**2, 41**2 * 30**2, 0])
        np.testing.assert_allclose(drawn, weights / weights.sum(), atol=0.02)

    def test_only_what_is_allowed(self, dataset: Scenes) -> None:
        def allowed(
            scene: int,
            rows: NDArray[np.int64],
            cols: NDArray[np.int64],
            size: int | NDArray[np.int64],
        ) -> NDArray[np.bool_]:
            return (scene != 1) & (rows < 5)

        sampler = RandomScenePatchSampler(dataset, size=8, length=100, allowed=allowed)
        patches = list(sampler)
        assert len(patches) == 100
        assert {patch.scene for patch in patches} == {0, 2}
        assert max(patch.row for patch in patches) == 4

    def test_no_patch_fits(self, dataset: Scenes) -> None:
        with pytest.raises(ValueError, match='no patch of 65 pixels fits'):
            RandomScenePatchSampler(dataset, size=65, length=1)

    def test_no_length(self, dataset: Scenes) -> None:
        with pytest.raises(ValueError, match='length=0'):
            RandomScenePatchSampler(dataset, size=8, length=0)


class TestGridded:
    def test_covers_without_overlap(self, dataset: Scenes) -> None:
        sampler = GriddedScenePatchSampler(dataset, size=30)
        assert len(sampler) == 3 * 2 * 2
        patches = list(sampler)
        assert patches == list(sampler)
        assert patches[:3] == [
            Patch(0, 0, 0, 30),
            Patch(0, 0, 30, 30),
            Patch(0, 30, 0, 30),
        ]

    def test_stride(self, dataset: Scenes) -> None:
        assert len(GriddedScenePatchSampler(dataset, size=32, stride=16)) == 3 * 3 * 3

    def test_starts_where_it_may(self, dataset: Scenes) -> None:
        sampler = GriddedScenePatchSampler(
            dataset,
            size=30,
            allowed=lambda scene, rows, cols, size: (rows > 33) & (cols > 0),
        )
        assert [(patch.row, patch.col) for patch in sampler] == 3 * [(34, 4), (34, 34)]

    def test_nothing_allowed(self, dataset: Scenes) -> None:
        sampler = GriddedScenePatchSampler(
            dataset, size=30, allowed=lambda scene, rows, cols, size: rows < 0
        )
        assert list(sampler) == []
