# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""SSL4EO-S12 in its real layout: a folder a place, four seasons, one file a band."""

from pathlib import Path

from torchgeo.datasets import SSL4EOS12

from tests.data.geotiff.data import write_scene

SEASONS = (
    '20200124T100211_20200124T100214_T32TQM',
    '20200423T100021_20200423T100025_T32TQM',
    '20200722T100031_20200722T100034_T32TQM',
    '20201020T100051_20201020T100054_T32TQM',
)


def generate(root: Path, number: int = 4, size: int = 64, split: str = 's2c') -> None:
    """Write the files.

    The dataset says that it has 251,079 places whatever there is: patch its
    ``__len__`` to return *number*.

    Args:
        root: Folder to write to: the dataset's ``root``.
        number: How many places.
        size: Height and width of the files in pixels. The dataset reads 264 from any.
        split: 's2c' (13 bands), 's2a' (12) or 's1' (2).
    """
    for place in range(number):
        for season, name in enumerate(SEASONS):
            folder = f'S1A_IW_GRDH_1SDV_{name[:15]}' if split == 's1' else name
            for i, band in enumerate(SSL4EOS12.metadata[split]['bands']):
                write_scene(
                    root / split / f'{place:07}' / folder / f'{band}.tif',
                    bands=1,
                    size=size,
                    res=10,
                    dtype='float32' if split == 's1' else 'uint16',
                    seed=1000 * place + 100 * season + i,
                )
