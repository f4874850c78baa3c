# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Reads a part of any data module whole and in its order, as it is validated."""

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from torchgeo.datamodules import BaseDataModule
from torchgeo.datamodules.utils import MisconfigurationException
from torchgeo.samplers import GriddedPatchSampler


class Parts:
    """The parts of a data module, apart from a run that may use it as well."""

    def __init__(self, datamodule: BaseDataModule, stage: str = 'fit') -> None:
        """Initialize a new Parts instance.

        Args:
            datamodule: The data module, which is left as it is.
            stage: 'test' for its test part, besides those to train and validate.

        Raises:
            ValueError: If it is no data module of TorchGeo's kind.
        """
        if not isinstance(datamodule, BaseDataModule):
            raise ValueError(
                f'datamodule={datamodule!r:.80} must be a data module of the kind of '
                'TorchGeo, such as EuroSATDataModule'
            )
        self.name = type(datamodule).__name__
        # what is set up is set in the copy; augmentations are shared
        self.datamodule: Any = copy.copy(datamodule)
        self.datamodule.trainer = None
        if hasattr(datamodule, 'scenes') and hasattr(datamodule, 'val_sampler'):
            return  # it is set up once for all stages
        self.datamodule.prepare_data()
        self.datamodule.setup('fit')
        if stage == 'test':
            self.datamodule.setup('test')

    def load(self, part: str, most: int | None = None) -> tuple[DataLoader[Any], int]:
        """Make a loader that gives each image of a part once, in its order.

        Args:
            part: 'train', 'val' or 'test'.
            most: Number of images at most, evenly spread. None: all.

        Returns:
            The loader, and the number of its images.

        Raises:
            ValueError: If there is no such part, or it is empty.
        """
        module = self.datamodule
        if part != 'train' and not _is_stock(module):
            loader = getattr(module, f'{part}_dataloader')()
            if not isinstance(loader, DataLoader):
                raise ValueError(f"{self.name} has no part '{part}' to judge on")
            return loader, self.count(part)
        dataset = self._dataset(part)
        order: list[Any] = list(range(len(dataset)))
        if hasattr(module, 'patch_size') and hasattr(module, 'train_batch_sampler'):
            sampler = GriddedPatchSampler(dataset, size=module.patch_size)
            order = list(sampler)
        if not order:
            raise ValueError(f"{self.name} has no image in its part '{part}'")
        if most is not None and most < len(order):
            chosen = torch.linspace(0, len(order) - 1, most).round().long().tolist()
            order = [order[i] for i in chosen]
        plain = isinstance(order[0], int)
        loader = DataLoader(
            Subset(dataset, order) if plain else dataset,
            batch_size=getattr(module, f'{part}_batch_size') or module.batch_size,
            sampler=None if plain else order,
            num_workers=module.num_workers,
            collate_fn=module.collate_fn,
        )
        return loader, len(order)

    def count(self, part: str) -> int:
        """Count the images of a part.

        Args:
            part: 'train', 'val' or 'test'.

        Returns:
            Their number.
        """
        if not _is_stock(self.datamodule):
            return len(getattr(self.datamodule, f'{part}_sampler'))
        return len(self._dataset(part))

    def batches(
        self, part: str, device: torch.device, most: int | None = None
    ) -> Iterator[tuple[Any, int]]:
        """Read a part as a trainer that validates does.

        Args:
            part: 'train', 'val' or 'test'.
            device: Where to.
            most: As of :meth:`load`.

        Yields:
            Batches after the data module's own augmentation of the part to validate, or
            of that to test, and the number of images before it: it may cut each into
            patches.

        Raises:
            ValueError: If there is no such part, or its images do not fit in a batch.
        """
        module = self.datamodule
        loader, _ = self.load(part, most)
        asked = SimpleNamespace(
            training=False,
            validating=part != 'test',
            sanity_checking=False,
            testing=part == 'test',
            predicting=False,
        )
        # not left there: a setup would ask it for more
        for batch in loader:
            number = len(batch['image'])
            module.trainer = asked
            try:
                batch = module.transfer_batch_to_device(batch, device, 0)
                batch = module.on_after_batch_transfer(batch, 0)
            finally:
                module.trainer = None
            yield batch, number

    def _dataset(self, part: str) -> Any:
        """The data set of a part."""
        try:
            return self.datamodule._valid_attribute(f'{part}_dataset', 'dataset')
        except MisconfigurationException as error:
            raise ValueError(
                f"{self.name} has no part '{part}' to judge on: {error}"
            ) from error


def _is_stock(datamodule: BaseDataModule) -> bool:
    """Tell whether parts are data sets, not samplers of scenes."""
    return not hasattr(datamodule, 'scenes')
