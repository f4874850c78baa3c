# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A patch has the share of valid pixels that is asked for."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.data.geotiff.data import write_scene
from torchgeo_cmid.datasets import Scenes
from torchgeo_cmid.rasters.coverage import Coverage


def starts(dataset: Scenes, scene: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = dataset.scenes[scene].height, dataset.scenes[scene].width
    rows, cols = np.mgrid[: height - size + 1, : width - size + 1]
    return rows.ravel(), cols.ravel()


class TestMinValid:
    def test_exact_in_small_scenes(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif')
        rng = np.random.default_rng(0)
        expected = rng.random((64, 64)) < 0.8
        with rasterio.open(path, 'r+') as file:
            file.write_mask(expected)
        dataset = Scenes(path, min_valid=0.8)
        rows, cols = starts(dataset, 0, 8)
        shares = np.array(
            [
                expected[row : row + 8, col : col + 8].mean()
                for row, col in zip(rows, cols, strict=True)
            ]
        )
        keep = dataset.scenes[0].eligible(rows, cols, 8)
        np.testing.assert_array_equal(keep, shares >= 0.8)
        assert 0.1 < keep.mean() < 0.9

    def test_never_less_where_cells_are_coarse(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr('torchgeo_cmid.rasters.coverage.MAX_CELLS', 16)
        monkeypatch.setattr('torchgeo_cmid.rasters.coverage.CHUNK', 600)
        path = write_scene(tmp_path / 'a.tif', size=(70, 61), fill=0.3, nodata=0)
        dataset = Scenes(path, min_valid=1.0)
        assert dataset.scenes[0].coverage is not None
        assert dataset.scenes[0].coverage.cell == 5
        rows, cols = starts(dataset, 0, 8)
        keep = dataset.scenes[0].eligible(rows, cols, 8)
        assert rows[keep].min() == 25  # 21 rows of fill, cells of 5
        assert keep[rows >= 25].all()

    @pytest.mark.parametrize('edge', ['top', 'left', 'bottom', 'right'])
    def test_fill_of_every_cell_that_is_touched(self, edge: str) -> None:
        """One pixel over the edge of a cell, or short of it: counted cell by cell."""
        cell, (down, across) = 5, (4, 3)
        counts = np.random.default_rng(0).integers(1, 26, (down, across))
        sums = np.zeros((down + 1, across + 1), dtype=np.int64)
        sums[1:, 1:] = counts.cumsum(axis=0).cumsum(axis=1)
        # the last row and column of cells are cut off by the end of the scene
        height, width = cell * down - 2, cell * across - 3
        top, left, bottom, right = 5, 5, 10, 10
        ends = {'top': bottom, 'left': right, 'bottom': height, 'right': width}
        starts = {'top': 0, 'left': 0, 'bottom': top + 1, 'right': left + 1}
        for place in range(starts[edge], ends[edge] + (edge in ('bottom', 'right'))):
            box = {'top': top, 'left': left, 'bottom': bottom, 'right': right}
            box[edge] = place
            rows = range(box['top'] // cell, (box['bottom'] - 1) // cell + 1)
            cols = range(box['left'] // cell, (box['right'] - 1) // cell + 1)
            expected = counts[np.ix_(rows, cols)].sum()
            fill = Coverage(cell, sums).fill(
                np.array([box['top']]),
                np.array([box['left']]),
                box['bottom'] - box['top'],
                box['right'] - box['left'],
            )
            assert fill.item() == expected, box

    def test_files_without_fill_are_not_read(self, tmp_path: Path) -> None:
        dataset = Scenes(write_scene(tmp_path / 'a.tif'), min_valid=1.0)
        assert dataset.scenes[0].coverage is None

    @pytest.mark.parametrize('share', [-0.1, 1.1, float('nan')])
    def test_out_of_range(self, tmp_path: Path, share: float) -> None:
        with pytest.raises(ValueError, match=f'min_valid={share} must be'):
            Scenes(tmp_path, min_valid=share)
