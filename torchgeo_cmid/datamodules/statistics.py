# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Per-band mean and standard deviation: estimated, checked, kept in a file."""

import json
import math
import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from tqdm import tqdm

from ..datasets import Scenes
from ..datasets.images import PlainImages


@dataclass(frozen=True)
class Normalization:
    """What an image is normalised with: one value per band, in the files' units."""

    #: Bands, by the name or number they were asked for.
    bands: Sequence[int | str]
    #: Mean of each band.
    mean: Sequence[float]
    #: Standard deviation of each band.
    std: Sequence[float]

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If their number is not that of the bands, or a standard
                deviation is not positive.
        """
        for name, values in (('mean', self.mean), ('std', self.std)):
            if len(values) != len(self.bands):
                raise ValueError(
                    f'{name} has {len(values)} values, but there are '
                    f'{len(self.bands)} bands: give one for each of {list(self.bands)}'
                )
        if not all(math.isfinite(mean) for mean in self.mean):
            raise ValueError(f'mean={list(self.mean)}: every value must be finite')
        if not all(0 < std < math.inf for std in self.std):
            raise ValueError(f'std={list(self.std)}: every value must be positive')

    @classmethod
    def estimate(cls, dataset: Scenes | PlainImages, patches: Collection[Any]) -> Self:
        """Estimate from the valid pixels of patches.

        A band that is constant is given a standard deviation of 1, with a warning: it
        becomes 0 everywhere and is neither blown up nor lost.

        Args:
            dataset: Scenes or images to read from.
            patches: Patches or pairs to read, with a length.

        Returns:
            The estimate.

        Raises:
            ValueError: If no pixel of the patches is valid.
        """
        # Chan et al.'s merge of means and squared deviations, in double precision
        count = seen = 0
        mean = np.zeros(len(dataset.bands))
        deviation = np.zeros(len(dataset.bands))
        for patch in tqdm(patches, desc='Normalization statistics', unit='patch'):
            sample = dataset[patch]
            images = torch.split(sample['image'], len(dataset.bands))
            for image, valid in zip(images, sample['valid'], strict=True):
                seen += valid.numel()
                pixels = image[:, valid].numpy().astype(np.float64)  # (C, n)
                n = pixels.shape[1]
                if n == 0:
                    continue
                delta = pixels.mean(axis=1) - mean
                both = count * n / (count + n)
                deviation += pixels.var(axis=1) * n + delta**2 * both
                mean += delta * (n / (count + n))
                count += n
        if count == 0:
            raise ValueError(
                f'no valid pixel in the training patches of {dataset.paths!r}: all is '
                'fill; check nodata, or give mean and std'
            )

        share = f'{count / seen:.1%}'
        rank_zero_info(f'valid: {share} of the pixels of {len(patches)} patches')
        std = np.sqrt(deviation / count)
        constant = std == 0
        if constant.any():
            names = [dataset.bands[int(i)] for i in np.flatnonzero(constant)]
            warnings.warn(
                f'bands {names} are constant in the training patches: they are '
                'normalised to 0; leave them out with bands if that is not wanted',
                stacklevel=2,
            )
            std[constant] = 1
        return cls(list(dataset.bands), mean.tolist(), std.tolist())

    def save(self, path: str) -> None:
        """Write a JSON file, all of it or nothing.

        Args:
            path: File to write. One with the same content is left alone.

        Raises:
            FileExistsError: If the file exists with another content.
        """
        content = json.dumps(asdict(self), indent=2) + '\n'
        if os.path.exists(path):
            with open(path) as file:
                if file.read() == content:
                    return
            raise FileExistsError(
                f'{path} holds the statistics of another run: choose another '
                'default_root_dir, or remove the file'
            )
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f'{path}.{os.getpid()}.partial'
        with open(partial, 'w') as file:
            file.write(content)
        os.replace(partial, path)
