# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""EuroSAT100 in its real layout: 13-band GeoTIFFs in class folders, and split files."""

from pathlib import Path

from torchgeo.datasets import EuroSAT100

from tests.data.geotiff.data import write_scene

CLASSES = (
    'AnnualCrop',
    'Forest',
    'HerbaceousVegetation',
    'Highway',
    'Industrial',
    'Pasture',
    'PermanentCrop',
    'Residential',
    'River',
    'SeaLake',
)

#: Images of each class; the real subset has 6, 2 and 2.
NUMBER = {'train': 2, 'val': 1, 'test': 1}


def generate(root: Path, size: int = 64) -> None:
    """Write the files.

    Args:
        root: Folder to write to: the dataset's ``root``.
        size: Height and width of the images in pixels (the real ones have 64).
    """
    names: dict[str, list[str]] = {split: [] for split in NUMBER}
    for seed, label in enumerate(CLASSES):
        splits = [split for split, number in NUMBER.items() for _ in range(number)]
        for i, split in enumerate(splits, 1):
            write_scene(
                root / EuroSAT100.base_dir / label / f'{label}_{i}.tif',
                bands=len(EuroSAT100.all_band_names),
                size=size,
                res=10,
                seed=100 * seed + i,
            )
            names[split].append(f'{label}_{i}.jpg')
    for split, lines in names.items():
        path = root / EuroSAT100.split_filenames[split]
        path.write_text('\n'.join(lines) + '\n')
