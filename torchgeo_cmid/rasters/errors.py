# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""How the failures of GDAL come."""

from rasterio._err import CPLE_BaseError  # what rasterio.warp raises
from rasterio.errors import RasterioError

#: SystemError comes where GDAL fails and tells nothing, as from the sixth outline on
#: that cannot be projected: it tells of five.
GDAL_ERRORS = (RasterioError, CPLE_BaseError, SystemError)
