# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The patches of a sampler by number: what takes a sampler's place counts from 0."""

from collections.abc import Sequence

from torch.utils.data import Dataset
from torchgeo.datasets.utils import Sample

from ..datasets import Patch, PatchPair, Scenes
from .patches import GriddedScenePatchSampler, RandomScenePatchSampler


class NumberedPatches(Dataset[Sample]):
    """What a loader reads: as many patches as its sampler draws, of all processes.

    Lightning puts a :class:`~torch.utils.data.SequentialSampler` in the place of a
    sampler to overfit some batches, and asks for the length of the data set to scale
    the batch. So number i is the i-th patch that the sampler draws.
    """

    def __init__(
        self,
        scenes: Scenes,
        sampler: RandomScenePatchSampler | GriddedScenePatchSampler,
    ) -> None:
        """Initialize a new NumberedPatches instance.

        Args:
            scenes: Scenes that are read.
            sampler: What draws their patches.
        """
        self.scenes = scenes
        self.sampler = sampler
        self._listed: tuple[int, list[Patch | PatchPair]] = -1, []

    def __len__(self) -> int:
        """Return the number of patches of an epoch."""
        if isinstance(self.sampler, RandomScenePatchSampler):
            return self.sampler.total_size
        return len(self.sampler)

    def __getitem__(self, index: int | Patch | PatchPair) -> Sample:
        """Read a patch, or two of one place.

        Args:
            index: Its address, or its number in the epoch of the sampler.

        Returns:
            What :class:`~torchgeo_cmid.datasets.Scenes` gives.

        Raises:
            IndexError: If there is no such number.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int | Patch | PatchPair]) -> list[Sample]:
        """Read the patches of a batch.

        Args:
            indices: Their addresses, or their numbers.

        Returns:
            What :class:`~torchgeo_cmid.datasets.Scenes` gives.

        Raises:
            IndexError: If there is no such number.
        """
        addresses: list[Patch | PatchPair] = [
            index if isinstance(index, Patch | PatchPair) else self._find(index)
            for index in indices
        ]
        return self.scenes.__getitems__(addresses)

    def _find(self, number: int) -> Patch | PatchPair:
        """Find the address of a patch by its number."""
        epoch = getattr(self.sampler, 'epoch', 0)
        if self._listed[0] != epoch:
            self._listed = epoch, self.sampler.listed()
        if not 0 <= number < len(self):
            raise IndexError(f'there is no patch {number}, only 0 to {len(self) - 1}')
        return self._listed[1][number]
