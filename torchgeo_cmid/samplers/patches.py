# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Samplers that yield patches of :class:`~torchgeo_cmid.datasets.Scenes`."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler, Sampler

from ..datasets import Patch, PatchPair, Scenes
from ..datasets.splits import AreaSplit, candidates
from .ground import Allowed, Ground
from .overlap import Integers, Overlap
from .pairs import find_other_dates

#: Patches drawn at a time, at most.
ROUND = 2**14

#: Patches tried before a share of usable ones below ``SCARCE`` is given up.
TRIES = 2**20
SCARCE = 1e-4


def everywhere(
    scene: int, rows: Integers, cols: Integers, size: int | Integers
) -> NDArray[np.bool_]:
    """Allow every patch.

    Args:
        scene: Number of the scene.
        rows: First rows of the patches (n,).
        cols: First columns of the patches (n,).
        size: Height and width of the patches in pixels, one or (n,).

    Returns:
        True for each patch (n,).
    """
    return np.ones(rows.shape, dtype=np.bool_)


class WithData:
    """Allows only patches that lie in the region of interest and have data enough."""

    def __init__(self, dataset: Scenes, allowed: Allowed) -> None:
        """Initialize a new WithData instance.

        Args:
            dataset: The scenes.
            allowed: Tells which patches are allowed otherwise.
        """
        self.scenes, self.allowed = dataset.scenes, allowed
        ground = allowed is everywhere or (
            isinstance(getattr(allowed, '__self__', None), AreaSplit)
        )
        #: What depends on the ground alone: the same for scenes of one grid.
        self.of_ground = allowed if ground else None

    def __call__(
        self, scene: int, rows: Integers, cols: Integers, size: int | Integers
    ) -> NDArray[np.bool_]:
        """Tell which patches may be used.

        Args:
            scene: Number of the scene.
            rows: First rows of the patches (n,).
            cols: First columns of the patches (n,).
            size: Height and width of the patches in pixels, one or (n,).

        Returns:
            True for those that may (n,).
        """
        eligible = self.scenes[scene].eligible(rows, cols, size)
        return eligible & self.allowed(scene, rows, cols, size)


class RandomScenePatchSampler(DistributedSampler[Patch | PatchPair]):
    """Draw patches at random, each of them independently over all scenes.

    A scene is drawn with a probability in proportion to the ground on which a patch can
    start, and what several scenes show counts once, so batches mix scenes and every
    place is as likely as any other: see :mod:`torchgeo_cmid.samplers.ground`. What is
    drawn follows from the seed and the epoch alone. Under several processes, each takes
    its share of one common draw: a :class:`~torch.utils.data.DistributedSampler`, which
    Lightning leaves in place and tells the epoch.
    """

    def __init__(
        self,
        dataset: Scenes,
        *,
        size: int,
        length: int,
        allowed: Allowed = everywhere,
        dates: int = 1,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        """Initialize a new RandomScenePatchSampler instance.

        Args:
            dataset: Scenes to sample from.
            size: Height and width of a patch in pixels.
            length: Patches per epoch, of all processes together (rounded up to a
                multiple of *num_replicas*).
            allowed: Tells which patches may be drawn (defaults to all).
            dates: 1, or 2 for pairs of a patch and one of the same ground at another
                time: see :class:`~torchgeo_cmid.samplers.pairs.OtherDates`.
            seed: Seed, the same in every process.
            num_replicas: Number of processes.
            rank: Number of this process.

        Raises:
            ValueError: If *length* is not positive, no patch may be drawn, or *dates*
                is 2 and no scenes of different times show the same ground.
        """
        if size < 1:
            raise ValueError(f'size={size} must be at least 1')
        if length < 1:
            raise ValueError(f'length={length} must be at least 1')
        super().__init__(dataset, num_replicas, rank, seed=seed)
        self.num_samples = math.ceil(length / num_replicas)
        self.total_size = self.num_samples * num_replicas
        self.size = size
        self.usable = WithData(dataset, allowed)
        #: Patches of the next epoch that are left out, having been seen before.
        self.first = 0

        # Ground area on which a patch can start, what several scenes show once.
        self.scenes = dataset.scenes
        self.ground = Ground(dataset, size, self.usable)
        if not self.ground.drawn.any():
            demands = ' and has data enough' * any(s.min_valid for s in self.scenes)
            raise ValueError(f'no patch of {size} pixels fits into any scene{demands}')
        self.parts = parts = self.ground.divide()
        weights = self.ground.largest[parts.scene] * parts.rows * parts.cols
        self.weights = weights / parts.shown
        self.weights /= self.weights.sum()
        self.other_dates = find_other_dates(dates, self.ground.overlap, self.usable)

    def __iter__(self) -> Iterator[Patch | PatchPair]:
        """Draw the patches of the current epoch.

        Yields:
            This process's share of the patches, or of the pairs.

        Raises:
            ValueError: If next to no patch may be drawn.
        """
        first, self.first = self.first, 0
        yield from self._addresses(self.rank, first)

    def listed(self) -> list[Patch | PatchPair]:
        """List the patches of the current epoch, of all processes.

        Returns:
            The patches, or the pairs.

        Raises:
            ValueError: If next to no patch may be drawn.
        """
        return list(self._addresses())

    def _addresses(
        self, own_rank: int | None = None, first: int = 0
    ) -> Iterator[Patch | PatchPair]:
        """Draw the patches of an epoch, those of one process or of all."""
        choice = np.random.default_rng([self.seed, self.epoch, 1])
        position = 0
        for drawn in self._rounds([self.seed, self.epoch], self.total_size):
            turn, rank = np.divmod(position + np.arange(len(drawn)), self.num_replicas)
            position += len(drawn)
            draws = choice.random(len(drawn))
            own = turn >= first
            if own_rank is not None:
                own &= rank == own_rank
            if self.other_dates is None:
                yield from self._patches(drawn[own])
            else:
                yield from self.other_dates.pair(drawn[own], draws[own])

    def draw(self, number: int, seed: int) -> list[Patch]:
        """Draw patches of which all processes get the same.

        Args:
            number: How many.
            seed: What they follow from.

        Returns:
            The patches.

        Raises:
            ValueError: If next to no patch may be drawn.
        """
        drawn = np.concatenate(list(self._rounds([seed, 0], number)))
        return list(self._patches(drawn))

    def _rounds(self, seed: list[int], total: int) -> Iterator[Integers]:
        """Draw *total* patches round by round, (scene, row, column) each."""
        rng = np.random.default_rng(seed)
        number, tried, kept = min(total, ROUND), 0, 0
        while kept < total:
            drawn = self._draw(rng, number)[: total - kept]
            tried += number
            kept += len(drawn)
            if tried >= TRIES and kept < SCARCE * tried:
                raise ValueError(
                    f'of {tried} patches of {self.size} pixels {kept} may be drawn: '
                    'choose a smaller patch, a larger roi or a smaller min_valid'
                )
            number = min(max(number, (total - kept) * tried // max(kept, 1)), ROUND)
            yield drawn

    def _patches(self, drawn: Integers) -> Iterator[Patch]:
        """Make addresses of what was drawn."""
        for scene, row, col in drawn:
            yield Patch(int(scene), int(row), int(col), self.size)

    def _draw(self, rng: np.random.Generator, number: int) -> Integers:
        """Draw *number* candidates and keep the allowed (scene, row, column)."""
        parts = rng.choice(len(self.weights), number, p=self.weights)
        scenes = self.parts.scene[parts]
        rows = self.parts.row[parts] + rng.integers(self.parts.rows[parts])
        cols = self.parts.col[parts] + rng.integers(self.parts.cols[parts])
        keep = np.zeros(number, dtype=np.bool_)
        for scene in np.unique(scenes):
            here = scenes == scene
            keep[here] = self.usable(int(scene), rows[here], cols[here], self.size)
        drawn = np.stack([scenes, rows, cols], axis=1)[keep]
        if self.ground.overlap.overlaps.any() or self.ground.uneven.any():
            chance = self.ground.chance(*drawn.T) * self.parts.shown[parts[keep]]
            drawn = drawn[rng.random(len(drawn)) < chance]
        return drawn


class GriddedScenePatchSampler(Sampler[Patch | PatchPair]):
    """Cover scenes with a grid of patches, always the same and in the same order."""

    def __init__(
        self,
        dataset: Scenes,
        *,
        size: int,
        stride: int | None = None,
        allowed: Allowed = everywhere,
        dates: int = 1,
        share: float = 1.0,
        length: int | None = None,
    ) -> None:
        """Initialize a new GriddedScenePatchSampler instance.

        Args:
            dataset: Scenes to sample from.
            size: Height and width of a patch in pixels.
            stride: Distance between patches in pixels (defaults to *size*).
            allowed: Tells which patches to yield (defaults to all).
            dates: 1, or 2 for pairs of a patch and one of the same ground at another
                time, always the same: see
                :class:`~torchgeo_cmid.samplers.pairs.OtherDates`.
            share: Share of the patches to yield, more than 0 and at most 1, at least
                one of them: spread evenly over the scenes.
            length: Patches to yield, at most (defaults to *share* of them).

        Raises:
            ValueError: If *dates* is 2 and no scenes of different times show the same
                ground, or *length* is not positive.
        """
        if length is not None and length < 1:
            raise ValueError(f'length={length} must be at least 1')
        self.size = size
        usable = WithData(dataset, allowed)
        grids = [np.zeros((0, 3), dtype=np.int64)]
        for i, scene in enumerate(dataset.scenes):
            rows, cols = candidates(scene, size)
            inside = allowed(i, rows, cols, size)
            if not inside.any():
                continue
            # The grid starts at an allowed patch, so that narrow strips are covered.
            step = stride or size
            row, col = rows[inside][0] % step, cols[inside][0] % step
            rows = np.arange(row, scene.height - size + 1, step)
            cols = np.arange(col, scene.width - size + 1, step)
            rows, cols = np.meshgrid(rows, cols, indexing='ij')
            rows, cols = rows.ravel(), cols.ravel()
            keep = usable(i, rows, cols, size)
            grids.append(np.stack([np.full(rows.shape, i), rows, cols], axis=1)[keep])
        self.patches = np.concatenate(grids)
        total = len(self.patches)
        number = math.ceil(total * min(share, 1)) if length is None else length
        if number < total:
            kept = (np.arange(number) + 0.5) * (total / number)
            self.patches = self.patches[kept.astype(np.int64)]
        self.other_dates = None
        if dates != 1:
            self.other_dates = find_other_dates(dates, Overlap(dataset, size), usable)

    def __iter__(self) -> Iterator[Patch | PatchPair]:
        """Yield the patches, or the pairs, scene by scene, row by row."""
        if self.other_dates is not None:
            draws = np.random.default_rng(0).random(len(self.patches))
            yield from self.other_dates.pair(self.patches, draws)
            return
        for scene, row, col in self.patches:
            yield Patch(int(scene), int(row), int(col), self.size)

    def listed(self) -> list[Patch | PatchPair]:
        """List the patches.

        Returns:
            The patches, or the pairs.
        """
        return list(self)

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.patches)
