# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A sensor: files that share a list of bands, and how their pixels are understood."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Sensor:
    """Files of one sensor and the bands wanted of them.

    Several sensors in one run each name their own bands, as many as the others and in
    an order that makes the same channel the same part of the spectrum. *scale* and
    *offset* bring them to one unit, reflectance for example.
    """

    #: A folder, a file or a glob, or several of them.
    paths: list[str] | str = 'data'
    #: Bands to read, by name or 1-based number (defaults to all bands).
    bands: list[int | str] | None = None
    #: Names of the bands of a file with several, in its order (defaults to its band
    #: descriptions).
    all_bands: list[str] | None = None
    #: Verbose regular expression of file names. Its group ``band`` says which band a
    #: file holds, for scenes of one file per band; ``date``, or ``start`` and ``stop``,
    #: say when a scene was taken.
    filename_regex: str | None = None
    #: How dates are written, as of :meth:`datetime.datetime.strptime`.
    date_format: str = '%Y%m%d'
    #: Fill value in addition to those that the files declare. NaN is one too, unless a
    #: number is given here.
    nodata: float | None = None
    #: Factor from what the files store to the unit wanted.
    scale: float = 1.0
    #: Added after *scale*.
    offset: float = 0.0
    #: GDAL's drivers that may open files, besides those of GeoTIFF, JPEG 2000, netCDF,
    #: HDF5, Zarr, PNG, JPEG and VRTs of local files in these formats.
    drivers: list[str] | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If a list is empty or names a band twice, or *scale* or *offset*
                is out of range.
        """
        for name in ('bands', 'all_bands', 'drivers'):
            value = getattr(self, name)
            if value is None:
                continue
            if not value:
                raise ValueError(f'{name} is empty: name at least one, or leave it out')
            if len(set(value)) < len(value):
                raise ValueError(f'{name}={list(value)} names a band twice')
        if not math.isfinite(self.scale) or self.scale == 0:
            raise ValueError(f'scale={self.scale} must be finite and not 0')
        if not math.isfinite(self.offset):
            raise ValueError(f'offset={self.offset} must be finite')
