# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The data sets of experiments/transfer in their real layouts, with random pixels."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from torchgeo.datasets import LEVIRCD, OSCD, EuroSAT, Potsdam2D, UCMerced, Vaihingen2D

from tests.data.eurosat100.data import generate as generate_eurosat100
from tests.data.geotiff.data import write_scene

SPLITS = ('train', 'val', 'test')


def _write_image(path: Path, size: int = 64, seed: int = 0) -> None:
    """Write an RGB image by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def _write_mask(path: Path, size: int = 64, seed: int = 0) -> None:
    """Write a mask of 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 2, (size, size), np.uint8)
    Image.fromarray(pixels * 255).save(path)


def _write_labels(path: Path, colormap: object, size: int = 64) -> None:
    """Write a mask by its colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.array([tuple(color) for color in colormap], np.uint8)  # type: ignore[attr-defined]
    index = np.random.default_rng(0).integers(0, len(colors), (size, size))
    Image.fromarray(colors[index]).save(path)


def eurosat(root: Path) -> None:
    """13-band GeoTIFFs in folders of classes, and lists of splits."""
    generate_eurosat100(root)
    for split in SPLITS:
        name = EuroSAT.split_filenames[split]
        (root / name.replace('eurosat-', 'eurosat-100-')).rename(root / name)


def _folders(root: Path, folder: str, suffix: str, lists: str, number: int = 1) -> None:
    """Images in folders of classes, and lists of splits."""
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for label in range(2):  # of the real 21 or 45 classes
        for i, split in enumerate(SPLITS * number):
            name = f'class{label:02}_{i}{suffix}'
            _write_image(root / folder / f'class{label:02}' / name, seed=label + 7 * i)
            names[split].append(name)
    for split in SPLITS:
        (root / lists.format(split)).write_text('\n'.join(names[split]) + '\n')


def ucmerced(root: Path, number: int = 1) -> None:
    """TIFFs in folders of classes, and lists of splits."""
    _folders(root, UCMerced.base_dir, '.tif', 'uc_merced-{}.txt', number)


def resisc45(root: Path, number: int = 1) -> None:
    """JPEGs in folders of classes, and lists of splits."""
    _folders(root, 'NWPU-RESISC45', '.jpg', 'resisc45-{}.txt', number)


def potsdam(root: Path, size: int = 64) -> None:
    """Tiles of 4 bands, and labels by colours."""
    for split in ('train', 'test'):
        for seed, name in enumerate(Potsdam2D.splits[split][:5]):
            tile = root / Potsdam2D.image_root / f'{name}_RGBIR.tif'
            write_scene(tile, bands=4, size=size, dtype='uint8', seed=seed)
            _write_labels(root / f'{name}_label.tif', Potsdam2D.colormap, size)


def vaihingen(root: Path, size: int = 64) -> None:
    """Tiles of 3 bands, and labels by colours."""
    for split in ('train', 'test'):
        for seed, name in enumerate(Vaihingen2D.splits[split][:5]):
            tile = root / Vaihingen2D.image_root / name
            write_scene(tile, bands=3, size=size, dtype='uint8', seed=seed)
            _write_labels(root / name, Vaihingen2D.colormap, size)


def levircd(root: Path, size: int = 64) -> None:
    """Pairs of PNGs, and masks."""
    first, second, label = LEVIRCD.directories
    for split in SPLITS:
        for i in range(2):
            name = f'{split}_{i}.png'
            _write_image(root / first / name, size, seed=i)
            _write_image(root / second / name, size, seed=i + 10)
            _write_mask(root / label / name, size, seed=i)


def oscd(root: Path, size: int = 64) -> None:
    """13 bands as a file each for two dates, masks and dates."""
    name = 'Onera Satellite Change Detection dataset - {}'
    for split, number in (('Train', 5), ('Test', 2)):
        for i in range(number):
            region = f'{split.lower()}{i}'
            images = root / name.format('Images') / region
            for date in (1, 2):
                for seed, band in enumerate(OSCD.all_bands):
                    write_scene(
                        images / f'imgs_{date}_rect' / f'{band}.tif',
                        bands=1,
                        size=size,
                        dtype='uint16',
                        seed=100 * date + seed,
                    )
            (images / 'dates.txt').write_text('date_1: 20160101\ndate_2: 20180101\n')
            _write_mask(
                root / name.format(f'{split} Labels') / region / 'cm' / 'cm.png', size
            )


def vhr10(root: Path) -> None:
    """JPEGs, and boxes and outlines as COCO annotations."""
    folder = root / 'NWPU VHR-10 dataset'
    images, annotations = [], []
    for i in range(1, 11):
        name = f'{i:03}.jpg'
        _write_image(folder / 'positive image set' / name, seed=i)
        images.append({'file_name': name, 'height': 64, 'width': 64, 'id': i - 1})
        annotations.append(
            {
                'image_id': i - 1,
                'category_id': 1 + i % 10,
                'bbox': [8, 8, 40, 32],
                'segmentation': [[8, 8, 48, 8, 48, 40, 8, 40]],
            }
        )
    (folder / 'annotations.json').write_text(
        json.dumps({'images': images, 'annotations': annotations})
    )
    (root / 'NWPU VHR-10 dataset.zip').touch()  # TorchGeo looks whether it is there


GENERATE = {
    'eurosat': eurosat,
    'ucmerced': ucmerced,
    'resisc45': resisc45,
    'potsdam': potsdam,
    'vaihingen': vaihingen,
    'levircd': levircd,
    'oscd': oscd,
    'vhr10': vhr10,
}
