# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Data modules that TorchGeo lacks."""

from .image_folder import ImageFolderDataModule
from .olinda import OlindaDataModule
from .raster_folder import RasterFolderDataModule

__all__ = ('ImageFolderDataModule', 'OlindaDataModule', 'RasterFolderDataModule')
