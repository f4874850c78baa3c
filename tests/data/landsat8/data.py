# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Cut the crops that lie here from the whole scenes; they need not be cut again.

    python tests/data/landsat8/data.py FOLDER_OF_THE_SCENES

Landsat 8, 18 May 2020, path 224, rows 077 and 078 where they overlap, courtesy of the
U.S. Geological Survey, public domain. Row 077 has one file a band, row 078 one for all;
a part of row 078 is fill (0), and no tag says so.
"""

import sys
from pathlib import Path

import rasterio
from rasterio.windows import Window

#: File -> first column, first row, width and height of the crop, in pixels.
CROPS = {
    **{
        f'LC08_L1TP_224077_20200518_B{band}.TIF': (1218, 452, 160, 160)
        for band in (2, 3, 4)
    },
    'LC08_L1TP_224078_20200518_B234.TIF': (450, 110, 160, 160),
}


def main() -> None:
    """Write the crops beside this file."""
    for name, crop in CROPS.items():
        window = Window(*crop)
        with rasterio.open(Path(sys.argv[1]) / name) as file:
            values = file.read(window=window)
            profile = file.profile | {
                'width': window.width,
                'height': window.height,
                'transform': file.window_transform(window),
                'compress': 'deflate',
                'predictor': 2,
                'blockxsize': 160,
                'blockysize': 160,
            }
        with rasterio.open(Path(__file__).parent / name, 'w', **profile) as file:
            file.write(values)


if __name__ == '__main__':
    main()
