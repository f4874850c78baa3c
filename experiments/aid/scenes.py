# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The images of the study: AID in class folders, split by a fixed seed."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchgeo.datamodules import NonGeoDataModule
from torchvision.io import decode_image

#: Images to train on, by which rates and rules are chosen, and that are scored once.
PARTS = {'train': 5000, 'select': 1000, 'score': 1000}


def split(total: int) -> dict[str, list[int]]:
    """Part images by a fixed seed.

    Args:
        total: Number of images.

    Returns:
        Numbers of the images of each part.
    """
    random = torch.Generator().manual_seed(0)
    chosen = torch.randperm(total, generator=random)[: sum(PARTS.values())]
    parts = chosen.split(list(PARTS.values()))
    return {name: part.tolist() for name, part in zip(PARTS, parts, strict=True)}


def decode(root: Path, folder: Path) -> tuple[np.ndarray[Any, Any], Tensor]:
    """Decode all images once, for all processes.

    Args:
        root: Folder of class folders of JPEGs, 150 x 150 pixels each.
        folder: Where the pixels are kept.

    Returns:
        Images, (N, 3, 150, 150) uint8, memory-mapped, and classes, (N,).
    """
    files = sorted(root.glob('*/*.jpg'))
    names = sorted({file.parent.name for file in files})
    labels = torch.tensor([names.index(file.parent.name) for file in files])
    pixels = folder / 'aid.npy'
    if not pixels.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f'aid-{os.getpid()}.npy'
        images = torch.stack([decode_image(str(file), mode='RGB') for file in files])
        np.save(unfinished, images.numpy())
        unfinished.replace(pixels)
    return np.load(pixels, mmap_mode='r'), labels


class AID(Dataset[dict[str, Tensor]]):
    """Images that were decoded before, with their classes."""

    def __init__(self, root: str, folder: str) -> None:
        """Initialize a new AID instance.

        Args:
            root: Folder of class folders.
            folder: Where the pixels are kept.
        """
        self.images, self.labels = decode(Path(root), Path(folder))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """An image, (3, 150, 150) in 0..255, and its class.

        Args:
            index: Its number.

        Returns:
            The sample.
        """
        image = torch.from_numpy(self.images[index].copy()).float()
        return {'image': image, 'label': self.labels[index]}


class AIDDataModule(NonGeoDataModule):
    """The part to train on; TorchGeo's default normalises by 0 and 255."""

    def __init__(self, batch_size: int = 64, **kwargs: Any) -> None:
        """Initialize a new AIDDataModule instance.

        Args:
            batch_size: Number of images in a batch.
            **kwargs: Arguments of :class:`AID`.
        """
        super().__init__(AID, batch_size, num_workers=0, **kwargs)

    def setup(self, stage: str) -> None:
        """Read the images.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.
        """
        self.dataset = AID(**self.kwargs)
        parts = split(len(self.dataset))
        self.train_dataset = Subset(self.dataset, parts['train'])
