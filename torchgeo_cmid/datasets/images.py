# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A dataset of images without a place, in class folders or not."""

import os
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from torchgeo.datasets.utils import Sample

from ..rasters.listing import Names
from ..rasters.patch import resize_patch
from ..rasters.plain import read_image

#: Images in a row that may be unreadable.
TRIES = 100


class Crop(NamedTuple):
    """Address of a square of an image."""

    #: Number of the image in the data set.
    image: int
    #: Where it lies between top (0) and bottom (1).
    down: float = 0.5
    #: Where it lies between left (0) and right (1).
    across: float = 0.5


class Kind(NamedTuple):
    """What all images of an archive must be."""

    #: An image that is it.
    path: str
    #: Number of bands.
    bands: int
    #: Data type.
    dtype: str


class PlainImages(Dataset[Sample]):
    """Some images of a list, read as squares of one size.

    An image that is smaller than the square is enlarged, bilinearly, until its shorter
    side fills it: nothing is padded.
    """

    def __init__(
        self,
        names: Names,
        numbers: NDArray[np.int64],
        size: int,
        kind: Kind | None = None,
        skip_bad_files: bool = False,
    ) -> None:
        """Initialize a new PlainImages instance.

        Args:
            names: The list.
            numbers: Numbers of the images in it (n,).
            size: Height and width of the squares.
            kind: Bands and data type that all have (defaults to what comes).
            skip_bad_files: If True, the next image that can be read takes the place of
                one that cannot, with a warning.
        """
        self.names, self.numbers, self.size = names, numbers, size
        self.kind, self.skip_bad_files = kind, skip_bad_files
        self._told: set[str] = set()
        folders = [inside for _, inside in names.folders]
        #: Names of the classes: of the folders, where all images lie one folder deep.
        self.classes: list[str] = []
        if all(folder and os.sep not in folder for folder in folders):
            classes = sorted(set(folders))
            self.classes = classes if len(classes) > 1 else []
        self._labels = [self.classes.index(f) for f in folders if self.classes]

    @property
    def paths(self) -> list[str]:
        """Folders that were named."""
        return list(dict.fromkeys(root for root, _ in self.names.folders))

    @property
    def bands(self) -> Sequence[int]:
        """Numbers of the bands."""
        return range(1, 1 + (self.kind.bands if self.kind else 0))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.numbers)

    def __getitem__(self, index: Crop | int) -> Sample:
        """Read a square of an image.

        Args:
            index: Its address, or the number of the image: then it is the middle.

        Returns:
            ``image`` (C, H, W) float32 as stored; ``valid`` (1, H, W) bool; ``patch``
            (4,) int64, the number of the image in the list, row, column and size in it;
            ``label``, where there are class folders.

        Raises:
            IndexError: If there is no such image.
            OSError: If it cannot be read.
            ValueError: If it is of another kind than the others.
        """
        crop = index if isinstance(index, Crop) else Crop(int(index))
        if not 0 <= crop.image < len(self):
            raise IndexError(f'there is no image {crop.image} of {len(self)}')
        last = min(TRIES, len(self)) - 1
        for step in range(last + 1):
            number = int(self.numbers[(crop.image + step) % len(self)])
            try:
                return self._load(number, crop)
            except (OSError, ValueError) as error:
                if not self.skip_bad_files or step == last:
                    raise
                path = self.names.path(number)
                if path not in self._told:
                    self._told.add(path)
                    warnings.warn(f'skipped, the next is read: {error}', stacklevel=2)
        raise AssertionError

    def look(self, number: int) -> Kind:
        """Read a pixel of an image to know its kind.

        Args:
            number: Its number in the list.

        Returns:
            Its bands and its data type.
        """
        path = self.names.path(number)
        data = read_image(path, 0.5, 0.5, 1)[0]
        return Kind(path, len(data), str(data.dtype))

    def _load(self, number: int, crop: Crop) -> Sample:
        """Read a square of one image."""
        path = self.names.path(number)
        data, where, place = read_image(path, crop.down, crop.across, self.size)
        kind = self.kind or Kind(path, len(data), str(data.dtype))
        if (len(data), str(data.dtype)) != kind[1:]:
            raise ValueError(
                f'{path} has {len(data)} bands of {data.dtype}, but {kind.path} has '
                f'{kind.bands} of {kind.dtype}: keep them in folders of their own, or '
                'set skip_bad_files'
            )
        pixels = data.astype(np.float32)
        means = (
            pixels.mean(axis=(1, 2), where=where, keepdims=True)
            if (where.any())
            else np.zeros((len(data), 1, 1), dtype=np.float32)
        )
        image = torch.from_numpy(np.where(where, pixels, means))
        valid = torch.from_numpy(where)[None]
        if place[2] < self.size:
            image, valid = resize_patch(image, valid, self.size)
        sample: Sample = {
            'image': image,
            'valid': valid,
            'patch': torch.tensor([number, *place]),
        }
        if self.classes:
            sample['label'] = torch.tensor(self._labels[self.names.folder[number]])
        return sample
