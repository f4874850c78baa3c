# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The figures of several networks on labelled images, which are read once."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..datamodules.parts import Parts
from ..evaluation import (
    CellKNN,
    CellProbe,
    Cells,
    Features,
    cell_rank,
    cell_statistics,
    correspondence,
    effective_rank,
    evaluate_classification,
    find_masks,
    image_statistics,
    mean_cosine,
    mean_iou,
    normalised_std,
    pair_dates,
)
from ..networks.backbone import feature_map
from ..transforms import Views, cell_grid

#: Images whose cells are compared with those of another view, about.
CORRESPONDING = 256

#: Name of the network that is none: statistics of the image.
STATISTICS = 'image statistics'

Describe = Callable[[Tensor], tuple[Tensor, Tensor]]


def describe(backbone: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the features of images.

    Args:
        backbone: A timm model, or an encoder that gives a list of maps.
        images: Images, (B, C, S, S).

    Returns:
        Pooled features, (B, D), and their map, (B, D, h, w).
    """
    if hasattr(getattr(backbone, '_orig_mod', backbone), 'forward_features'):
        maps = feature_map(backbone, images).float()
    else:
        maps = backbone(images)[-1].float()
    return maps.mean(dim=(2, 3)), maps


def target_of(batch: Mapping[str, Any], name: str) -> tuple[str, Tensor | None]:
    """Tell what is labelled in a batch.

    Args:
        batch: The batch.
        name: Name of the data module.

    Returns:
        'class' and classes, (B,); 'mask' and the masks, (B, H, W); or '' and None.

    Raises:
        ValueError: If the labels are of another kind.
    """
    if 'mask' in batch:
        masks: Tensor = batch['mask']
        while masks.ndim > 3 and masks.shape[1] == 1:
            masks = masks[:, 0]
        if masks.ndim != 3:
            raise ValueError(
                f"{name} gives a 'mask' of shape {tuple(batch['mask'].shape)}: it must "
                'be one mask for each image, (B, H, W)'
            )
        return 'mask', masks.long()
    if 'label' in batch:
        labels: Tensor = batch['label']
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"{name} gives a 'label' of shape {tuple(labels.shape)} and type "
                f'{labels.dtype}: one class for each image is needed'
            )
        return 'class', labels
    return '', None


class Candidate:
    """A network that is judged: its features, and what was found of them."""

    def __init__(self, describe: Describe, ignore_index: int | None) -> None:
        """Initialize a new Candidate instance.

        Args:
            describe: Gives pooled features and maps of images, (B, C, H, W).
            ignore_index: Class of pixels that do not count.
        """
        self.describe = describe
        self.ignore_index = ignore_index
        self.pooled: dict[str, list[Tensor]] = {}
        self.cells: dict[str, Cells] = {}
        self.finders: dict[str, Any] = {}
        self.scores: dict[str, Any] = {}
        self.ranks: list[Tensor] = []
        self.found = [0.0, 0.0]

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features, of what has changed where there are two dates.

        Args:
            images: Images, (B, C, H, W) or (B, 2, C, H, W).

        Returns:
            Pooled features and maps.
        """
        if images.ndim == 4:
            return self.describe(images)
        maps = pair_dates(*(self.describe(images[:, i])[1] for i in range(2)))
        return maps.mean(dim=(2, 3)), maps

    def note(
        self, part: str, images: Tensor, masks: Tensor | None, total: int, last: bool
    ) -> None:
        """Take a batch.

        Args:
            part: 'train', 'val' or 'test'.
            images: The images.
            masks: Classes of pixels, (B, H, W). None: there are none.
            total: Number of images of the part.
            last: Whether the part is the one that is judged.
        """
        pooled, maps = self.see(images)
        self.pooled.setdefault(part, []).append(pooled.cpu())
        if last:
            if min(maps.shape[2:]) > 1:
                self.ranks += [cell_rank(each[None]).cpu() for each in maps]
            if masks is not None:
                self._find(maps, masks)
        elif masks is not None:
            held = Cells(total, ignore_index=self.ignore_index)
            self.cells.setdefault(part, held).add(maps.cpu(), masks.cpu())

    def _find(self, maps: Tensor, masks: Tensor) -> None:
        """Find the classes of pixels and compare them."""
        if not self.finders:
            memory, held_out = self.cells['train'], self.cells.get('val')
            self.finders = {
                'dense_knn': CellKNN(memory),
                'cell_probe': CellProbe(memory, held_out),
            }
            self.scores = {name: mean_iou(self.ignore_index) for name in self.finders}
        size = (masks.shape[1], masks.shape[2])
        for name, finder in self.finders.items():
            self.scores[name].update(find_masks(finder, maps.cpu(), size), masks.cpu())

    def compare(self, views: tuple[Tensor, Tensor], grids: Any, size: int) -> None:
        """Count the cells that are found again in another view.

        Args:
            views: Two views of each image.
            grids: Gives the centres of cells in each view from h and w.
            size: Height and width of the views.
        """
        maps = self.describe(views[0])[1], self.describe(views[1])[1]
        cells = (maps[0].shape[2], maps[0].shape[3])
        if min(cells) < 2:
            return
        first, second = (cell_grid(each, size, cells) for each in grids)
        for pair in ((maps, (first, second)), (maps[::-1], (second, first))):
            right, there = correspondence(*pair)
            self.found[0] += float(right)
            self.found[1] += float(there)

    def figures(self, part: str, labels: Mapping[str, Tensor]) -> dict[str, float]:
        """Compute all figures.

        Args:
            part: The part that is judged.
            labels: Classes of the images of each part; empty: there are none.

        Returns:
            Figures by name.
        """
        x = {name: torch.cat(parts) for name, parts in self.pooled.items()}
        result: dict[str, float] = {}
        if labels:
            sets = {name: Features(x[name], labels[name]) for name in x}
            held_out = sets.get('val') if part == 'test' else None
            result |= evaluate_classification(sets['train'], sets[part], held_out)
        for name, score in self.scores.items():
            result[f'{name}_miou'] = float(score.compute())
        if self.found[1]:
            result['correspondence'] = self.found[0] / self.found[1]
        result['effective_rank'] = float(effective_rank(x[part]))
        if self.ranks:
            result['cell_rank'] = float(torch.stack(self.ranks).mean())
        if len(x[part]) > 1:
            result['mean_cosine'] = float(mean_cosine(x[part]))
            result['normalised_std'] = float(normalised_std(x[part]))
        return result


def judge(
    networks: Mapping[str, nn.Module | None],
    parts: Parts,
    part: str,
    device: torch.device,
    *,
    in_channels: int,
    prepare: Callable[[Tensor], Tensor],
    size: int | None,
    max_images: int | None,
    ignore_index: int | None,
    unlabelled: bool,
) -> dict[str, dict[str, float]]:
    """Compute the figures of several networks.

    Args:
        networks: Backbones in eval mode by name. None: statistics of the image.
        parts: The parts of the data module.
        part: The part that is judged, 'val' or 'test'; the memory is 'train'.
        device: Where to compute.
        in_channels: Number of bands of the networks.
        prepare: Brings images, (B, C, H, W), to the pixels of the networks.
        size: Height and width to which images are resized. None: as they are.
        max_images: Number of images at most, of all parts together. None: all.
        ignore_index: Class of pixels that do not count.
        unlabelled: Whether images without labels will do.

    Returns:
        Figures by network and name.

    Raises:
        ValueError: If bands or labels do not fit.
    """
    names = ['train', 'val'] if part == 'val' else ['train', 'val', 'test']
    first, number = next(parts.batches(part, device))
    kind = target_of(first, parts.name)[0]
    patches = len(first['image']) / number
    if not kind:
        if not unlabelled:
            raise ValueError(
                f"{parts.name} gives neither 'label' nor 'mask': to judge a backbone "
                'while it trains, give a data module with labels'
            )
        names = [part]
    counts = {name: parts.count(name) for name in names}
    share = 1.0 if max_images is None else min(1.0, max_images / sum(counts.values()))
    network = next((each for each in networks.values() if each is not None), None)

    def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
        cells = (8, 8)
        if network is not None:
            small = describe(network, prepare(_resize(images[:1], size)))[1]
            cells = (small.shape[2], small.shape[3])
        return image_statistics(images), cell_statistics(images, cells)

    def features(backbone: nn.Module) -> Describe:
        return lambda images: describe(backbone, prepare(_resize(images, size)))

    candidates = {
        name: Candidate(statistics if each is None else features(each), ignore_index)
        for name, each in networks.items()
    }
    labels: dict[str, list[Tensor]] = {}
    for name in names:
        most = math.ceil(share * counts[name])
        seen = 0
        total = math.ceil(most * patches)
        for batch, _ in parts.batches(name, device, most):
            images = split_dates(batch['image'], in_channels, parts.name)
            target = target_of(batch, parts.name)[1]
            masks = target if kind == 'mask' else None
            if kind == 'class' and target is not None:
                labels.setdefault(name, []).append(target.cpu())
            for candidate in candidates.values():
                candidate.note(name, images, masks, total, name == part)
            if name == part and seen < CORRESPONDING:
                date = images if images.ndim == 4 else images[:, 0]
                side = size or min(date.shape[2:])
                weak = Views(side, nn.Identity())
                views, transforms = weak((date, date))[:2]
                for candidate in candidates.values():
                    candidate.compare(views, transforms, side)
            seen += len(images)
    known = {name: torch.cat(each) for name, each in labels.items()}
    return {name: each.figures(part, known) for name, each in candidates.items()}


def split_dates(images: Tensor, in_channels: int, name: str) -> Tensor:
    """Check the bands of images, and put dates on an axis of their own.

    Args:
        images: (B, C, H, W), (B, 2 C, H, W) or (B, T, C, H, W), T = 1 or 2.
        in_channels: Number of bands C of the backbone.
        name: Name of the data module.

    Returns:
        Images, (B, C, H, W) or (B, 2, C, H, W).

    Raises:
        ValueError: If there are other bands, or more dates.
    """
    images = images.float()
    if images.ndim == 4 and images.shape[1] == 2 * in_channels:
        images = images.reshape(len(images), 2, in_channels, *images.shape[2:])
    if images.ndim == 5 and images.shape[1] == 1:
        images = images[:, 0]
    dates = images.shape[1] if images.ndim == 5 else 1
    if images.ndim not in (4, 5) or images.shape[-3] != in_channels or dates > 2:
        raise ValueError(
            f'{name} gives images of shape {tuple(images.shape)}, but the backbone '
            f'takes {in_channels} bands: choose bands of the data module, or a model '
            f'with in_channels={images.shape[-3]}'
        )
    return images


def _resize(images: Tensor, size: int | None) -> Tensor:
    """Resize images, (B, C, H, W), to squares."""
    if size is None or images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode='bilinear', antialias=True)
