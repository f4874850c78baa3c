# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Generate a small m-eurosat in the layout of GeoBench V1: a file per image."""

import json
import pickle
from pathlib import Path

import h5py
import numpy as np

CLASSES = 10
BANDS = {'04 - Red': 957.0, '03 - Green': 1055.0, '02 - Blue': 1125.0}


def create(root: Path, images: int = 40, size: int = 64) -> None:
    """Write ``classification_v1.0/m-eurosat`` below a folder.

    Args:
        root: The folder.
        images: Number of images of each part.
        size: Width and height, in pixels.
    """
    random = np.random.default_rng(0)
    folder = root / 'classification_v1.0' / 'm-eurosat'
    folder.mkdir(parents=True)
    parts: dict[str, list[str]] = {}
    for part in ('train', 'valid', 'test'):
        parts[part] = [f'{part}_{i}' for i in range(images)]
        for i, name in enumerate(parts[part]):
            label = i % CLASSES
            with h5py.File(folder / f'{name}.hdf5', 'w') as file:
                for band, mean in BANDS.items():
                    noise = random.normal(mean + 300 * label, 200, (size, size))
                    file[band] = noise.clip(1).astype(np.uint16)
                metadata = {'label': label, 'bands_order': list(BANDS)}
                file.attrs['pickle'] = repr(pickle.dumps(metadata))
    (folder / 'default_partition.json').write_text(json.dumps(parts))
