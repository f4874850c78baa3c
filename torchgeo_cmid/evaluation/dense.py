# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Masks from the features of cells: by nearest neighbours, and by a linear probe."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from .features import Features, standardise, to_numpy
from .linear import check_classes, choose_strength, logistic_regression

#: Cells in the memory at most, neighbours, and temperature of their weights.
MOST_CELLS = 100_000
NEIGHBOURS = 30
TEMPERATURE = 0.02

#: Cells that a linear probe is fitted to at most: more take minutes.
MOST_CELLS_OF_PROBE = 10_000

#: Classes of a mask are less.
MOST_CLASSES = 256


def pair_dates(first: Tensor, second: Tensor) -> Tensor:
    """Make of the features of two dates those of what has changed between them.

    Half the sum and the absolute difference of the normalised features, so that the
    order of the dates does not matter, and the cosine of two cells tells how much has
    changed, too.

    Args:
        first: Map of features of one date, (B, D, h, w).
        second: Map of features of the other, (B, D, h, w).

    Returns:
        Map of features, (B, 2 D, h, w).
    """
    a, b = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
    return torch.cat([(a + b) / 2, (a - b).abs()], dim=1)


def check_masks(masks: Tensor, ignore_index: int | None = None) -> None:
    """Refuse masks whose values are no classes.

    Args:
        masks: Classes of pixels, (B, H, W).
        ignore_index: Class of the pixels that do not count.

    Raises:
        ValueError: If a mask holds a value outside of 0..255.
    """
    outside = (masks < 0) | (masks >= MOST_CLASSES)
    if ignore_index is not None:
        outside &= masks != ignore_index
    if outside.any():
        values = torch.unique(masks[outside]).tolist()[:5]
        raise ValueError(
            f'masks hold {values}, which are no classes (0 to {MOST_CLASSES - 1}): '
            'name what does not count by ignore_index'
        )


def soft_labels(
    masks: Tensor,
    cells: tuple[int, int],
    num_classes: int,
    ignore_index: int | None = None,
) -> Tensor:
    """Share of each class in each cell of a mask.

    Args:
        masks: Classes of pixels, (B, H, W).
        cells: Height h and width w of the map in cells.
        num_classes: Number of classes K.
        ignore_index: Class of the pixels that do not count.

    Returns:
        Shares, (B, K, h, w), which add up to 1, or to 0 where no pixel counts.
    """
    known = torch.ones_like(masks, dtype=torch.bool)
    if ignore_index is not None:
        known = masks != ignore_index
    shares = [
        F.adaptive_avg_pool2d(((masks == k) & known)[:, None].float(), cells)
        for k in range(num_classes)
    ]
    total = torch.cat(shares, dim=1)  # (B, K, h, w)
    return total / total.sum(dim=1, keepdim=True).clamp(min=1e-6)


@dataclass
class Cells:
    """Some cells of each image of a part, with the classes of their pixels."""

    #: Number of images of the part: each gives as many cells, at most *most* in all.
    num_images: int
    most: int = MOST_CELLS
    ignore_index: int | None = None
    seed: int = 0
    _x: list[Tensor] = field(default_factory=list)
    _shares: list[Tensor] = field(default_factory=list)
    _images: list[Tensor] = field(default_factory=list)
    _seen: int = 0

    def add(self, maps: Tensor, masks: Tensor) -> None:
        """Add cells of a batch.

        Args:
            maps: Maps of features, (B, D, h, w).
            masks: Classes of pixels, (B, H, W).

        Raises:
            ValueError: If a mask holds what is no class.
        """
        check_masks(masks, self.ignore_index)
        cells = (maps.shape[2], maps.shape[3])
        known = (
            masks if self.ignore_index is None else masks[masks != self.ignore_index]
        )
        num_classes = int(known.max()) + 1 if known.numel() else 1
        shares = soft_labels(masks, cells, num_classes, self.ignore_index)
        number = max(1, self.most // self.num_images)
        for features, share in zip(maps.flatten(2), shares.flatten(2), strict=True):
            (there,) = torch.nonzero(share.sum(dim=0) > 0.5, as_tuple=True)
            random = torch.Generator().manual_seed(self.seed + self._seen)
            chosen = there[torch.randperm(len(there), generator=random)[:number]]
            self._x.append(features[:, chosen].T.float())
            self._shares.append(share[:, chosen].T)
            self._images.append(torch.full_like(chosen, self._seen))
            self._seen += 1

    @property
    def num_classes(self) -> int:
        """Number of classes K, one more than the highest."""
        return max((shares.shape[1] for shares in self._shares), default=0)

    @property
    def x(self) -> Tensor:
        """Features, (N, D)."""
        return torch.cat(self._x)[: self.most]

    @property
    def shares(self) -> Tensor:
        """Share of each class, (N, K)."""
        k = self.num_classes
        padded = [F.pad(each, (0, k - each.shape[1])) for each in self._shares]
        return torch.cat(padded)[: self.most]

    @property
    def images(self) -> Tensor:
        """Number of the image to which each cell belongs, (N,)."""
        return torch.cat(self._images)[: self.most]

    def some(self, number: int) -> tuple[Features, Tensor]:
        """Take some of the cells, each by the class that most of its pixels have.

        Args:
            number: Number of cells at most.

        Returns:
            Features and classes, and the images to which they belong, (n,).
        """
        random = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(self.x), generator=random)[:number].sort().values
        chosen = chosen.to(self.x.device)
        features = Features(self.x[chosen], self.shares[chosen].argmax(dim=1))
        return features, self.images[chosen]


def transfer_labels(
    memory: Tensor,
    shares: Tensor,
    queries: Tensor,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    chunk: int = 256,
) -> Tensor:
    """Give cells the classes of those that are most similar to them, softly.

    A neighbour of cosine c weighs exp(c / T) among the k nearest. Source: section 3 of
    `Towards in-context scene understanding <https://arxiv.org/abs/2306.01667>`__.

    Args:
        memory: Features of cells, (N, D).
        shares: Share of each class in them, (N, K).
        queries: Features of other cells, (M, D).
        k: Number of neighbours.
        temperature: T.
        chunk: Number of queries that are compared at once.

    Returns:
        Share of each class in the other cells, (M, K).

    Raises:
        ValueError: If the memory has fewer than k cells.
    """
    if len(memory) < k:
        raise ValueError(f'{len(memory)} labelled cells are fewer than the k = {k}')
    bank = F.normalize(memory.float(), dim=1).T  # (D, N)
    found = []
    for part in torch.split(queries, chunk):
        cosines = F.normalize(part.to(bank), dim=1) @ bank
        nearest, index = cosines.topk(k, dim=1)
        weights = (nearest / temperature).softmax(dim=1)  # (m, k)
        found.append(torch.einsum('mk, mkc -> mc', weights, shares[index]))
    return torch.cat(found)


class CellKNN:
    """Masks by soft transfer of the labels of a memory of cells."""

    def __init__(self, memory: Cells) -> None:
        """Initialize a new CellKNN instance.

        Args:
            memory: Cells with known classes.

        Raises:
            ValueError: If they are of one class only.
        """
        self.x, self.shares = memory.x, memory.shares
        check_classes(self.shares.argmax(dim=1))

    def __call__(self, cells: Tensor) -> Tensor:
        """Find the classes of cells.

        Args:
            cells: Features, (M, D).

        Returns:
            Share of each class, (M, K).
        """
        return transfer_labels(self.x, self.shares, cells)


class CellProbe:
    """Masks by logistic regression on the standardised features of a cell."""

    def __init__(
        self,
        memory: Cells,
        held_out: Cells | None = None,
        most: int = MOST_CELLS_OF_PROBE,
    ) -> None:
        """Initialize a new CellProbe instance.

        Args:
            memory: Cells with known classes.
            held_out: Cells on which C is chosen. None: folds of the memory, each of
                whole images.
            most: Number of cells that it is fitted to at most.

        Raises:
            ValueError: If the cells are of one class only, or of one image.
            ModuleNotFoundError: If scikit-learn is not installed.
        """
        features, images = memory.some(most)
        check_classes(features.y)
        self.scale = standardise(features.x)
        known = Features(self.scale(features.x), features.y)
        if held_out is None:
            c = choose_strength(known, groups=images)
        else:
            other = held_out.some(most)[0]
            c = choose_strength(known, Features(self.scale(other.x), other.y))
        self.regression: Any = logistic_regression(c)
        self.regression.fit(to_numpy(known.x), to_numpy(known.y))
        self.num_classes = memory.num_classes

    def __call__(self, cells: Tensor) -> Tensor:
        """Find the classes of cells.

        Args:
            cells: Features, (M, D).

        Returns:
            Probability of each class, (M, K).
        """
        x = to_numpy(self.scale(cells))
        known = torch.from_numpy(self.regression.predict_proba(x)).float()
        probabilities = known.new_zeros(len(cells), self.num_classes)
        probabilities[:, torch.from_numpy(self.regression.classes_)] = known
        return probabilities.to(cells.device)


def find_masks(
    find: Callable[[Tensor], Tensor], maps: Tensor, size: tuple[int, int]
) -> Tensor:
    """Find the classes of pixels from the features of cells.

    Args:
        find: Gives the share of each class in cells, (M, K), from features, (M, D).
        maps: Maps of features, (B, D, h, w).
        size: Height H and width W of the masks in pixels.

    Returns:
        Classes, (B, H, W), of the shares as they are between the centres of cells.
    """
    batch_size, _, h, w = maps.shape
    shares = find(maps.flatten(2).mT.flatten(0, 1))  # (B h w, K)
    shares = shares.view(batch_size, h, w, -1).permute(0, 3, 1, 2)
    return F.interpolate(shares, size, mode='bilinear').argmax(dim=1)


def mean_iou(ignore_index: int | None = None) -> MulticlassJaccardIndex:
    """Mean intersection over union of the classes that occur, of every pixel.

    Args:
        ignore_index: Class of the pixels that do not count.

    Returns:
        The metric, of found and true masks, (B, H, W) each, of this process alone.
    """
    return MulticlassJaccardIndex(
        MOST_CLASSES, ignore_index=ignore_index, sync_on_compute=False
    )
