# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Images in random order, each of them once an epoch, and a random place in each."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from ..datasets.images import Crop


class RandomImageSampler(DistributedSampler[Crop]):
    """Draw images without replacement; what is drawn follows from seed and epoch."""

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        length: int | None = None,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        """Initialize a new RandomImageSampler instance.

        Args:
            dataset: Images to sample from, with a length.
            length: Draws per epoch, of all processes together, at most (defaults to
                all images). Short epochs share one order, so that no image comes twice
                before as many epochs as fit have passed; in longer ones images come
                again, elsewhere.
            seed: Seed, the same in every process.
            num_replicas: Number of processes.
            rank: Number of this process.

        Raises:
            ValueError: If there are fewer draws than processes.
        """
        super().__init__(dataset, num_replicas, rank, seed=seed)
        self.images: int = len(dataset)  # type: ignore[arg-type]
        self.num_samples = (length or self.images) // num_replicas
        if self.num_samples < 1:
            raise ValueError(f'length={length} is less than one for each process')
        self.total_size = self.num_samples * num_replicas
        #: Images of the next epoch that are left out, having been seen before.
        self.first = 0

    def __iter__(self) -> Iterator[Crop]:
        """Draw this process's share of the current epoch.

        Yields:
            Numbers of images in the data set, and places in them.
        """
        first, self.first = self.first, 0
        total = self.total_size
        cycle, turn = divmod(self.epoch, max(1, self.images // total))
        orders = [
            np.random.default_rng([self.seed, cycle, i]).permutation(self.images)
            for i in range(math.ceil(total / self.images))
        ]
        order = np.concatenate(orders)[turn * total :][:total]
        places = np.random.default_rng([self.seed, self.epoch]).random((total, 2))
        own = slice(self.rank + first * self.num_replicas, None, self.num_replicas)
        for number, (down, across) in zip(order[own], places[own], strict=True):
            yield Crop(int(number), float(down), float(across))
