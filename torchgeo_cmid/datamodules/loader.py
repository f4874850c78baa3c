# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A data loader that keeps its place in an epoch over an interruption."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader
from torchgeo.datasets.utils import Sample

from ..samplers import RandomImageSampler, RandomScenePatchSampler


class ResumableDataLoader(DataLoader[Sample]):
    """A data loader whose place in the epoch goes into Lightning's checkpoints.

    Lightning saves and restores every loader that has ``state_dict`` and
    ``load_state_dict``. The patches follow from seed and epoch, so the number of
    batches is all that has to be kept; what was drawn before them is not read again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Initialize a new ResumableDataLoader instance.

        Args:
            *args: As of :class:`torch.utils.data.DataLoader`.
            **kwargs: The same; *sampler* is one of ours that draws at random.
        """
        super().__init__(*args, **kwargs)
        self._place = {'epoch': 0, 'batches': 0}

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Load the batches of the current epoch, from the place that was restored on.

        Yields:
            Batches.
        """
        if not isinstance(self.sampler, RandomScenePatchSampler | RandomImageSampler):
            yield from super().__iter__()  # another one was put in its place
            return
        epoch, place = self.sampler.epoch, self._place
        done = place['batches'] if place['epoch'] == epoch else 0
        assert self.batch_size is not None
        self.sampler.first = done * self.batch_size
        self._place = {'epoch': epoch, 'batches': done}
        for batch in super().__iter__():
            self._place['batches'] += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Tell the place.

        Returns:
            The epoch and the number of its batches that have been given.
        """
        return dict(self._place)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from a place.

        Args:
            state_dict: What :meth:`state_dict` gave.
        """
        self._place = dict(state_dict)
