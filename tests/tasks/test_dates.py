# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Two dates of one place become two views whose cells match on the ground."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from tests.data.dates.data import generate, write_places
from tests.data.geotiff.data import write_scene
from tests.tasks.test_fit import fit, log_of
from torchgeo_cmid import CMID
from torchgeo_cmid.datasets import Patch, PatchPair, Scenes
from torchgeo_cmid.datasets.batch import stack_patches
from torchgeo_cmid.transforms import TwoMaskedViews, Views, match_cells

PAIRS = {
    'other resolution': PatchPair(Patch(0, 30, 40, 96), Patch(1, 19, 24, 32)),
    'other zone': PatchPair(Patch(0, 30, 40, 96), Patch(2, 2, 1, 96)),
    'coarse first': PatchPair(Patch(1, 10, 12, 96), Patch(0, 10, 6, 288)),
    'one date': PatchPair(Patch(0, 30, 40, 96), Patch(0, 30, 40, 96)),
}


def task_of(**kwargs: Any) -> CMID:
    task = CMID(model='resnet18', in_channels=2, size=96, queue_size=64, **kwargs)
    task.views.augmentations = Views(
        96, nn.Identity()
    )  # pixels keep saying where they are
    return task


def places_of(view: Tensor) -> Tensor:
    """Where each cell of a view is by its own pixels, (B, h, w, 2) in metres."""
    return avg_pool2d(view, 32).permute(0, 2, 3, 1)


@pytest.fixture
def dataset(tmp_path: Path) -> Scenes:
    generate(tmp_path)
    return Scenes(tmp_path)


@pytest.mark.parametrize('pair', PAIRS.values(), ids=list(PAIRS))
def test_cells_match_on_the_ground(dataset: Scenes, pair: PatchPair) -> None:
    torch.manual_seed(0)
    task = task_of()
    batch = stack_patches(dataset.__getitems__([pair] * 16))
    views, _, grids, _ = task.views(batch)
    places = places_of(views[0]), places_of(views[1])

    # by the pixels of the first patch: its scene's resolution, its corner
    scene, first = dataset.scenes[pair.first.scene], pair.first
    res = scene.transform.a
    corner = places[0].new_tensor([first.col, first.row])
    if pair.first.scene == 1:
        corner = corner - places[0].new_tensor([10, 200 / 30])
    for grid, place in zip(grids, places, strict=True):
        ground = (grid.flip(-1) + 0.5 + corner) * res  # (y, x) to (east, south)
        inside = slice(1, -1)  # resampling at the very edge of a patch extrapolates
        off = (ground - place)[:, inside, inside].norm(dim=-1) / res
        assert off.max() < 0.3  # pixels, of cells of 32

    # of all cells those are paired that show the same ground
    own, other = match_cells(*grids, 4)
    distances = torch.cdist(places[0].flatten(1, 2), places[1].flatten(1, 2))
    best = distances.amin(dim=2).topk(4, dim=1, largest=False).values
    rows = torch.arange(16)[:, None]
    torch.testing.assert_close(
        distances[rows, own, other].sort(dim=1).values, best, atol=res, rtol=0
    )


def test_without_the_frame_they_do_not(dataset: Scenes) -> None:
    torch.manual_seed(0)
    task = task_of()
    pair = PatchPair(Patch(0, 30, 40, 96), Patch(2, 2, 30, 96))  # 350 m further east
    batch = stack_patches(dataset.__getitems__([pair] * 16))
    torch.manual_seed(0)
    _, _, grids, _ = task.views(batch)
    del batch['frame']
    torch.manual_seed(0)
    _, _, alike, _ = task.views(batch)
    assert torch.equal(grids[0], alike[0])
    moved = (grids[1] - alike[1])[..., 1]
    assert moved.min() > 20  # pixels of 10 m


def test_fill_of_each_date_is_its_own(tmp_path: Path) -> None:
    """Values of fill on either date change no loss and no match."""
    write_places(tmp_path / 'a.tif', fill=0.3)
    write_places(tmp_path / 'b.tif', res=30, size=(100, 100), fill=0.35)
    pair = PatchPair(Patch(0, 60, 60, 96), Patch(1, 20, 20, 32))
    batch = stack_patches(Scenes(tmp_path).__getitems__([pair] * 4))
    assert not torch.equal(batch['valid'][:, 0], batch['valid'][:, 1])
    losses = []
    for fill in (0.0, torch.nan, 1e9):
        valid = batch['valid'].repeat_interleave(2, dim=1)
        changed = dict(batch, image=batch['image'].where(valid, fill) / 1000)
        torch.manual_seed(0)
        task = task_of(num_prototypes=16)
        drawn = task.views(changed)
        losses.append(task.compute_losses(*drawn, teacher_temperature=0.04))
    for name, value in losses[0].items():
        assert torch.equal(value, losses[1][name]), name
        assert torch.equal(value, losses[2][name]), name
    assert torch.isfinite(losses[0]['loss'])


def test_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of dates through the command, with another resolution."""
    monkeypatch.chdir(tmp_path)
    for i, (date, res, size) in enumerate(
        [('20240105', 30, 200), ('20240620', 60, 100), ('20250105', 30, 200)]
    ):
        write_scene(
            tmp_path / 'scenes' / f'a_{date}.tif', bands=4, res=res, size=size, seed=i
        )
    seen: list[Any] = []
    draw = TwoMaskedViews.forward

    def spy(views: TwoMaskedViews, batch: Any, *rest: Any) -> Any:
        seen.append((batch['image'].chunk(2, dim=1), batch['frame']))
        return draw(views, batch, *rest)

    monkeypatch.setattr(TwoMaskedViews, 'forward', spy)
    fit(
        '--data.init_args.paths=scenes',
        r'--data.init_args.filename_regex=a_(?P<date>\d{8})\.tif',
        '--data.init_args.dates=2',
    )
    assert any(row.get('train_loss') for row in log_of())
    assert any(row.get('val_loss') for row in log_of())
    assert not any(torch.equal(*images) for images, _ in seen)
    for images, frame in seen:
        assert images[0].shape == images[1].shape
        assert frame.shape == (len(images[0]), 3, 3)
        # standardised by the same statistics
        assert max(abs(float(image.mean())) for image in images) < 1


def test_dates_on_an_axis_of_their_own() -> None:
    """(B, 2, C, H, W) gives the loss of the same dates as 2 C bands."""
    losses = []
    image = torch.rand(4, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for each in (image, image.flatten(1, 2)):
        torch.manual_seed(0)
        task = CMID(model='resnet18', in_channels=3, size=64, queue_size=16)
        task.views.choose_recipe()
        drawn = task._draw_views({'image': each.clone()}, 0)
        losses.append(task.compute_losses(*drawn, teacher_temperature=0.04)['loss'])
    assert torch.equal(*losses)
