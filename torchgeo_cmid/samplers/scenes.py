# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Samplers that yield patches of :class:`~torchgeo_cmid.datasets.Scenes`."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler, Sampler

from ..datasets import Patch, Scenes
from ..datasets.splits import candidates
from .ground import Allowed, Ground, Integers

#: Patches drawn at a time, at most.
ROUND = 2**18

#: Patches tried before a share of usable ones below ``SCARCE`` is given up.
TRIES = 2**20
SCARCE = 1e-4


def everywhere(scene: int, rows: Integers, cols: Integers) -> NDArray[np.bool_]:
    """Allow every patch.

    Args:
        scene: Number of the scene.
        rows: First rows of the patches (n,).
        cols: First columns of the patches (n,).

    Returns:
        True for each patch (n,).
    """
    return np.ones(rows.shape, dtype=np.bool_)


class RandomScenePatchSampler(DistributedSampler[Patch]):
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
            seed: Seed, the same in every process.
            num_replicas: Number of processes.
            rank: Number of this process.

        Raises:
            ValueError: If *length* is not positive, or no patch may be drawn.
        """
        if size < 1:
            raise ValueError(f'size={size} must be at least 1')
        if length < 1:
            raise ValueError(f'length={length} must be at least 1')
        super().__init__(dataset, num_replicas, rank, seed=seed)
        self.num_samples = math.ceil(length / num_replicas)
        self.total_size = self.num_samples * num_replicas
        self.size = size
        self.allowed = allowed
        #: Patches of the next epoch that are left out, having been seen before.
        self.first = 0

        # Ground area on which a patch can start, 0 where none can lie.
        self.scenes = dataset.scenes
        self.ground = Ground(dataset, size, self._usable)
        weights = np.zeros(len(self.scenes))
        for i, scene in enumerate(self.scenes):
            if allowed(i, *candidates(scene, size)).any():
                starts = (scene.height - size + 1) * (scene.width - size + 1)
                weights[i] = self.ground.largest[i] * starts
        if not weights.any():
            demands = ' and has data enough' * any(s.min_valid for s in self.scenes)
            raise ValueError(f'no patch of {size} pixels fits into any scene{demands}')
        self.weights = weights / weights.sum()

    def __iter__(self) -> Iterator[Patch]:
        """Draw the patches of the current epoch.

        Yields:
            This process's share of the patches.

        Raises:
            ValueError: If next to no patch may be drawn.
        """
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn = np.zeros((0, 3), dtype=np.int64)
        number, tried = min(self.total_size, ROUND), 0
        while len(drawn) < self.total_size:
            drawn = np.concatenate([drawn, self._draw(rng, number)])
            tried += number
            if tried >= TRIES and len(drawn) < SCARCE * tried:
                raise ValueError(
                    f'of {tried} patches of {self.size} pixels {len(drawn)} may be '
                    'drawn: choose a smaller patch, a larger roi or a smaller min_valid'
                )
            missing = self.total_size - len(drawn)
            number = min(max(number, missing * tried // max(len(drawn), 1)), ROUND)
        own = drawn[self.rank : self.total_size : self.num_replicas]
        first, self.first = self.first, 0
        for scene, row, col in own[first:]:
            yield Patch(int(scene), int(row), int(col), self.size)

    def _draw(self, rng: np.random.Generator, number: int) -> Integers:
        """Draw *number* candidates and keep the allowed (scene, row, column)."""
        scenes = rng.choice(len(self.scenes), number, p=self.weights)
        heights = np.array([scene.height for scene in self.scenes])[scenes]
        widths = np.array([scene.width for scene in self.scenes])[scenes]
        rows = rng.integers(heights - self.size + 1)
        cols = rng.integers(widths - self.size + 1)
        keep = np.zeros(number, dtype=np.bool_)
        for scene in np.unique(scenes):
            here = scenes == scene
            keep[here] = self._usable(int(scene), rows[here], cols[here])
        drawn = np.stack([scenes, rows, cols], axis=1)[keep]
        if self.ground.overlaps.any() or self.ground.uneven.any():
            chance = self.ground.chance(*drawn.T)
            drawn = drawn[rng.random(len(drawn)) < chance]
        return drawn

    def _usable(self, scene: int, rows: Integers, cols: Integers) -> NDArray[np.bool_]:
        """Tell which patches lie where they may and have data enough."""
        usable = self.scenes[scene].eligible(rows, cols, self.size)
        return usable & self.allowed(scene, rows, cols)


class GriddedScenePatchSampler(Sampler[Patch]):
    """Cover scenes with a grid of patches, always the same and in the same order."""

    def __init__(
        self,
        dataset: Scenes,
        *,
        size: int,
        stride: int | None = None,
        allowed: Allowed = everywhere,
    ) -> None:
        """Initialize a new GriddedScenePatchSampler instance.

        Args:
            dataset: Scenes to sample from.
            size: Height and width of a patch in pixels.
            stride: Distance between patches in pixels (defaults to *size*).
            allowed: Tells which patches to yield (defaults to all).
        """
        self.size = size
        grids = [np.zeros((0, 3), dtype=np.int64)]
        for i, scene in enumerate(dataset.scenes):
            rows, cols = candidates(scene, size)
            inside = allowed(i, rows, cols)
            if not inside.any():
                continue
            # The grid starts at an allowed patch, so that narrow strips are covered.
            step = stride or size
            row, col = rows[inside][0] % step, cols[inside][0] % step
            rows = np.arange(row, scene.height - size + 1, step)
            cols = np.arange(col, scene.width - size + 1, step)
            rows, cols = np.meshgrid(rows, cols, indexing='ij')
            rows, cols = rows.ravel(), cols.ravel()
            keep = scene.eligible(rows, cols, size) & allowed(i, rows, cols)
            grids.append(np.stack([np.full(rows.shape, i), rows, cols], axis=1)[keep])
        self.patches = np.concatenate(grids)

    def __iter__(self) -> Iterator[Patch]:
        """Yield the patches scene by scene, row by row."""
        for scene, row, col in self.patches:
            yield Patch(int(scene), int(row), int(col), self.size)

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.patches)
