# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The Landsat 7 scene that the package ships."""

import os
from collections.abc import Callable, Iterable, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from pyproj import CRS
from torchgeo.datasets import RasterDataset, RGBBandsMissingError
from torchgeo.datasets.utils import Path, Sample, quantile_normalization


class Olinda(RasterDataset):
    """A Landsat 7 ETM+ scene of Olinda, Brazil, shipped for examples and tests.

    * 352 x 349 pixels of 28.5 m, SIRGAS 2000 / UTM zone 25S
    * six bands (B1-B5 and B7), uint8
    * no fill pixels

    Landsat imagery courtesy of the U.S. Geological Survey (public domain).

    If you use it in your research, please cite it in the following format:

    * https://www.usgs.gov/centers/eros/data-citation
    """

    #: The shipped file.
    path = os.path.join(os.path.dirname(__file__), 'data', 'LE07_olinda_B123457.tif')

    filename_glob = 'LE07_olinda_*'
    all_bands = ('B1', 'B2', 'B3', 'B4', 'B5', 'B7')
    rgb_bands = ('B3', 'B2', 'B1')

    def __init__(
        self,
        paths: Path | Iterable[Path] = path,
        crs: CRS | None = None,
        res: float | tuple[float, float] | None = None,
        bands: Sequence[str] | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
        cache: bool = True,
    ) -> None:
        """Initialize a new Olinda instance.

        Args:
            paths: The file, or a folder that holds it (defaults to the shipped one).
            crs: Coordinate reference system to warp to (defaults to that of the file).
            res: Resolution in units of *crs* (defaults to that of the file, 28.5 m).
            bands: Names of the bands to return (defaults to all).
            transforms: A function that takes a sample and returns a changed one.
            cache: If True, keep the file open between reads.

        Raises:
            AssertionError: If *bands* are invalid.
            DatasetNotFoundError: If the file is not found.
        """
        super().__init__(paths, crs, res, bands, transforms, cache)

    def plot(
        self, sample: Sample, show_titles: bool = True, suptitle: str | None = None
    ) -> Figure:
        """Plot a sample in natural colours.

        Args:
            sample: A sample of this dataset.
            show_titles: Whether to show a title above the image.
            suptitle: Title of the figure.

        Returns:
            The figure.

        Raises:
            RGBBandsMissingError: If *bands* lacks one of red, green and blue.
        """
        if not set(self.rgb_bands) <= set(self.bands):
            raise RGBBandsMissingError()
        rgb = [self.bands.index(band) for band in self.rgb_bands]
        image = quantile_normalization(sample['image'][rgb].permute(1, 2, 0).float())

        fig, ax = plt.subplots(figsize=(4, 4))
        ax.imshow(image)
        ax.axis('off')
        if show_titles:
            ax.set_title('Image')
        if suptitle is not None:
            plt.suptitle(suptitle)
        return fig
