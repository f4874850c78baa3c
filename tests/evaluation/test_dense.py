# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Masks from cells whose classes are known."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_cmid.evaluation import (
    CellKNN,
    CellProbe,
    Cells,
    find_masks,
    mean_iou,
    pair_dates,
    soft_labels,
    transfer_labels,
)
from torchgeo_cmid.evaluation.dense import TEMPERATURE

CELL = 8


def draw(number: int, seed: int = 0, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Masks of whole cells, and features that tell the class: maps, masks."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (number, 4, 4), generator=generator)
    maps = F.one_hot(labels, classes).permute(0, 3, 1, 2).float()
    masks = labels.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
    noise = 0.05 * torch.randn(number, 8, 4, 4, generator=generator)
    return torch.cat([maps, noise], dim=1), masks


def remember(number: int = 12, **kwargs: int) -> Cells:
    """A memory of some images."""
    cells = Cells(number, **kwargs)
    cells.add(*draw(number))
    return cells


class TestSoftLabels:
    def test_shares(self) -> None:
        mask = torch.tensor([[0, 1, 2, 2], [0, 0, 2, 9]])
        shares = soft_labels(mask[None], (1, 2), 3, ignore_index=9)
        expected = torch.tensor([[0.75, 0], [0.25, 0], [0, 1]])
        torch.testing.assert_close(shares[0, :, 0], expected)

    def test_nothing_counts(self) -> None:
        shares = soft_labels(torch.full((1, 2, 2), 9), (1, 1), 3, ignore_index=9)
        assert shares.sum() == 0


class TestTransfer:
    @pytest.mark.parametrize(('excess', 'expected'), [(-1e-3, 0), (1e-3, 1)])
    def test_weights(self, excess: float, expected: int) -> None:
        """Two neighbours outweigh one of cosine 1 from 1 - T ln 2 on."""
        c = 1 - TEMPERATURE * math.log(2) + excess
        memory = torch.tensor([[1, 0], *[[c, math.sqrt(1 - c * c)]] * 2, [0.0, 1]])
        shares = torch.eye(3)[[0, 1, 1, 2]]
        found = transfer_labels(memory, shares, torch.tensor([[5.0, 0]]), k=3)
        assert found.argmax() == expected
        assert found.sum() == pytest.approx(1)
        assert found[0, 2] == 0  # no neighbour

    def test_soft(self) -> None:
        """A cell of two classes passes on both."""
        shares = torch.tensor([[0.3, 0.7]]).expand(4, -1)
        found = transfer_labels(torch.randn(4, 3), shares, torch.randn(2, 3), k=4)
        torch.testing.assert_close(found, shares[:2])

    def test_too_few(self) -> None:
        with pytest.raises(ValueError, match='4 labelled cells are fewer'):
            transfer_labels(torch.eye(4), torch.eye(4), torch.eye(4))


class TestCells:
    def test_limit(self) -> None:
        """Every image gives as many; never more than asked for."""
        cells = remember(12, most=30)
        assert cells.images.tolist() == [i for i in range(12) for _ in range(2)]
        assert len(remember(12, most=5).x) == 5
        assert len(remember(12).x) == 12 * 16

    def test_features_and_shares_belong_together(self) -> None:
        cells = remember(12, most=60)
        assert cells.shares.equal(cells.x[:, :3])

    def test_classes_that_come_later(self) -> None:
        cells = Cells(2)
        maps, masks = draw(2)
        cells.add(maps[:1], masks[:1].clamp(max=0))
        cells.add(maps[1:], masks[1:])
        assert cells.shares.shape == (32, 3)
        assert cells.shares.sum(dim=1).allclose(torch.ones(32))

    def test_ignored(self) -> None:
        """Cells that do not count are none, and the index is no class."""
        cells = Cells(12, ignore_index=255)
        maps, masks = draw(12)
        masks[:, : 2 * CELL] = 255
        cells.add(maps, masks)
        assert cells.num_classes == 3
        assert len(cells.x) == 12 * 8

    @pytest.mark.parametrize('value', [-1, 256])
    def test_no_class(self, value: int) -> None:
        maps, masks = draw(1)
        masks[0, 0, 0] = value
        with pytest.raises(ValueError, match=rf'\[{value}\].* ignore_index'):
            Cells(1).add(maps, masks)
        Cells(1, ignore_index=value).add(maps, masks)


@pytest.mark.parametrize('kind', [CellKNN, CellProbe])
class TestFinders:
    def test_known_cells(self, kind: type[CellKNN | CellProbe]) -> None:
        """Every cell is found, and a map that is as large as its mask."""
        find = kind(remember())
        maps, masks = draw(5, seed=1)
        found = find_masks(find, maps, (4, 4))
        assert found.equal(masks[:, ::CELL, ::CELL])

    def test_every_pixel(self, kind: type[CellKNN | CellProbe]) -> None:
        """Half of a mask is found wrong: IoU of two classes 1/3 each."""
        find = kind(remember())
        maps, _ = draw(1, seed=1)
        maps[:, :3] = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)  # all of class 0
        masks = torch.zeros(1, 32, 32).long()
        masks[:, 16:] = 1
        metric = mean_iou()
        metric.update(find_masks(find, maps, (32, 32)), masks)
        # class 0: 512 of 1,024 pixels; class 1: none
        assert metric.compute() == pytest.approx(0.25)

    def test_one_class(self, kind: type[CellKNN | CellProbe]) -> None:
        cells = Cells(4)
        maps, masks = draw(4)
        cells.add(maps, masks.clamp(max=0))
        with pytest.raises(ValueError, match=r'all of class \[0\]'):
            kind(cells)


class TestCellProbe:
    def test_held_out(self) -> None:
        find = CellProbe(remember(), held_out=remember(6))
        maps, masks = draw(5, seed=1)
        assert find_masks(find, maps, (4, 4)).equal(masks[:, ::CELL, ::CELL])

    def test_class_that_is_never_most(self) -> None:
        """It has probability 0, and the others keep their places."""
        cells = Cells(12)
        maps, masks = draw(12)
        masks[0, 0, 0] = 5
        cells.add(maps, masks)
        found = CellProbe(cells)(cells.x)
        assert found.shape[1] == 6
        assert found[:, 3:].sum() == 0


def test_ignored_pixels() -> None:
    metric = mean_iou(ignore_index=255)
    masks = torch.zeros(1, 4, 4).long()
    masks[:, 2:], masks[:, :, 3] = 1, 255
    found = torch.zeros(1, 4, 4).long()
    found[:, 2:] = 1
    found[:, :, 3] = 2
    metric.update(found, masks)
    assert metric.compute() == 1


class TestPairDates:
    def test_order_does_not_matter(self) -> None:
        a, b = torch.randn(2, 1, 3, 2, 2)
        assert pair_dates(a, b).equal(pair_dates(b, a))

    def test_cosine_tells_how_much_has_changed(self) -> None:
        """Also by another length, which is no change."""
        a, b = torch.tensor([[1.0, 0], [0, 1]])[:, None, :, None, None]
        same, changed = pair_dates(a, 3 * a), pair_dates(a, b)
        cosine = F.cosine_similarity(same, changed)
        # (1, 0, 0, 0) and (1/2, 1/2, 1, 1)
        assert float(cosine) == pytest.approx(0.5 / math.sqrt(2.5))
