# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Training and validation patches share no ground, and the share is kept."""

from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from pyproj import Transformer
from rasterio.transform import Affine

from tests.data.geotiff.data import ORIGIN, generate, write_scene
from torchgeo_cmid.datasets import Olinda, Patch, Scenes, split_by_area
from torchgeo_cmid.samplers import GriddedScenePatchSampler, RandomScenePatchSampler

#: A CRS that none of the scenes is in: equal areas around 55 W, 25 S.
THIRD = '+proj=laea +lat_0=-25 +lon_0=-55 +datum=WGS84 +units=m'


def footprint(dataset: Scenes, patch: Patch) -> shapely.Polygon:
    """Outline of a patch in a third CRS, drawn with 64 points an edge."""
    scene = dataset.scenes[patch.scene]
    box = shapely.box(
        patch.col, patch.row, patch.col + patch.size, patch.row + patch.size
    )
    cols, rows = shapely.get_coordinates(shapely.segmentize(box, patch.size / 64)).T
    a, b, c, d, e, f = scene.transform[:6]
    x, y = a * cols + b * rows + c, d * cols + e * rows + f
    transformer = Transformer.from_crs(scene.crs.to_wkt(), THIRD, always_xy=True)
    return shapely.Polygon(np.stack(transformer.transform(x, y), axis=1))


def draw(
    dataset: Scenes, size: int, val_split: float, seed: int = 0
) -> tuple[list[shapely.Polygon], list[shapely.Polygon]]:
    """Outlines of 300 training patches and of all validation patches."""
    split = split_by_area(dataset, size, val_split, seed)
    train = RandomScenePatchSampler(
        dataset, size=size, length=300, allowed=split.train, seed=seed
    )
    val = GriddedScenePatchSampler(dataset, size=size, allowed=split.val)
    return (
        [footprint(dataset, patch) for patch in train],
        [footprint(dataset, patch) for patch in val],
    )


def overlapping(folder: Path) -> Scenes:
    """Three scenes of one place in two CRSs and three grids, and one far away."""
    x, y = ORIGIN
    write_scene(folder / 'a.tif', size=(200, 150))
    write_scene(folder / 'b.tif', size=150, origin=(x + 1500, y - 3000))
    there = Transformer.from_crs('EPSG:32621', 'EPSG:32622', always_xy=True)
    corner = there.transform(x - 600, y + 300)
    write_scene(
        folder / 'c.tif', size=(320, 280), crs='EPSG:32622', res=20, origin=corner
    )
    write_scene(folder / 'd.tif', size=100, origin=(x + 100_000, y))
    return Scenes(folder)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('val_split', [0.15, 0.5])
def test_overlapping_scenes_in_two_crs(
    tmp_path: Path, val_split: float, seed: int
) -> None:
    train, val = draw(overlapping(tmp_path), 24, val_split, seed)
    tree = shapely.STRtree(train)
    assert len(train) == 300
    assert len(val) >= 5
    assert tree.query(val, predicate='intersects').size == 0


def test_patches_of_both_sides_come_close(tmp_path: Path) -> None:
    # the test above would pass with sides that are needlessly far apart
    dataset = overlapping(tmp_path)
    split = split_by_area(dataset, 24, 0.3)
    scene, cut = dataset.scenes[0], split.cuts[0]
    assert scene.crs != cut.reference.crs
    rows, cols = np.mgrid[: scene.height - 23, : scene.width - 23].reshape(2, -1)
    low, high = cut.extent(scene, rows, cols, 24)
    train, val = split.train(0, rows, cols, 24), split.val(0, rows, cols, 24)
    assert 1 <= low[val].min() - high[train].max() < 4


def test_a_scene_is_cut_at_the_share(tmp_path: Path) -> None:
    dataset = Scenes(write_scene(tmp_path / 'a.tif', size=(400, 100)))
    split = split_by_area(dataset, 32, 0.25)
    cut = split.cuts[0]
    assert cut.axis == 1
    assert abs(cut.position) == pytest.approx(300 if cut.sign > 0 else 100)


def test_rotated_scene(tmp_path: Path) -> None:
    turn = Affine.translation(*ORIGIN) @ Affine.rotation(30) @ Affine.scale(30, -30)
    write_scene(tmp_path / 'a.tif', size=200, transform=turn)
    write_scene(tmp_path / 'b.tif', size=150)
    train, val = draw(Scenes(tmp_path), 24, 0.3)
    assert val
    assert shapely.STRtree(train).query(val, predicate='intersects').size == 0


def test_small_clusters_are_assigned_whole(tmp_path: Path) -> None:
    generate(tmp_path, 10, size=40)
    split = split_by_area(Scenes(tmp_path), 32, 0.3)
    sides = [cut.position for cut in split.cuts]
    assert sides.count(-np.inf) in (2, 3)  # areas differ slightly
    assert sides.count(np.inf) + sides.count(-np.inf) == 10


def test_large_and_small_clusters(tmp_path: Path) -> None:
    write_scene(tmp_path / 'z.tif', size=400, origin=(ORIGIN[0], ORIGIN[1] + 1e5))
    generate(tmp_path, 5, size=40)
    split = split_by_area(Scenes(tmp_path), 32, 0.25)
    assert np.isfinite(split.cuts[-1].position)
    assert [cut.position for cut in split.cuts[:-1]].count(-np.inf) == 1


def test_a_share_smaller_than_a_patch_becomes_a_strip() -> None:
    dataset = Scenes(Olinda.path)
    train, val = draw(dataset, 96, 0.1)
    assert len(val) == 3
    assert shapely.STRtree(train).query(val, predicate='intersects').size == 0


def test_a_share_smaller_than_any_scene_is_the_smallest_scene(tmp_path: Path) -> None:
    generate(tmp_path, 3, size=40)
    write_scene(tmp_path / 'z.tif', size=36, origin=(ORIGIN[0], ORIGIN[1] + 1e5))
    split = split_by_area(Scenes(tmp_path), 32, 0.05)
    assert [cut.position for cut in split.cuts] == [np.inf] * 3 + [-np.inf]


def test_no_room(tmp_path: Path) -> None:
    dataset = Scenes(write_scene(tmp_path / 'a.tif', size=40))
    with pytest.raises(ValueError, match=r'val_split=0.1 leaves no room.*32 pixels'):
        split_by_area(dataset, 32, 0.1)


@pytest.mark.parametrize('val_split', [-0.1, 1.0])
def test_share_out_of_range(tmp_path: Path, val_split: float) -> None:
    dataset = Scenes(write_scene(tmp_path / 'a.tif'))
    with pytest.raises(ValueError, match=f'val_split={val_split} must be'):
        split_by_area(dataset, 32, val_split)


def test_nothing_set_aside(tmp_path: Path) -> None:
    dataset = Scenes(write_scene(tmp_path / 'a.tif'))
    split = split_by_area(dataset, 32, 0)
    rows = cols = np.arange(33)
    assert split.train(0, rows, cols, 32).all()
    assert not split.val(0, rows, cols, 32).any()


def test_depends_on_the_arguments_alone(tmp_path: Path) -> None:
    generate(tmp_path, 10, size=40)
    dataset = Scenes(tmp_path)
    positions = []
    for seed in [1, 1, 2]:
        torch.manual_seed(len(positions))
        np.random.seed(len(positions))  # noqa: NPY002
        cuts = split_by_area(dataset, 32, 0.5, seed).cuts
        positions.append([cut.position for cut in cuts])
    assert positions[0] == positions[1]
    assert positions[0] != positions[2]


def test_patch_larger_than_a_scene_is_on_no_side(tmp_path: Path) -> None:
    write_scene(tmp_path / 'a.tif', size=16)
    write_scene(tmp_path / 'b.tif', size=200, origin=(ORIGIN[0], ORIGIN[1] + 1e5))
    train, val = draw(Scenes(tmp_path), 32, 0.4)
    assert len(train) == 300
    assert val
