# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Data modules that TorchGeo lacks."""

from .olinda import OlindaDataModule
from .raster_folder import RasterFolderDataModule

__all__ = ('OlindaDataModule', 'RasterFolderDataModule')
