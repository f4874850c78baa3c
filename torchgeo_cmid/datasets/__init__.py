# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets that TorchGeo lacks, and the addresses that they are read by."""

from ..rasters import Georeference, Patch, PatchPair, Scene, Sensor, decode_crs
from .olinda import Olinda
from .scenes import Scenes
from .splits import AreaSplit, split_by_area

__all__ = (
    'AreaSplit',
    'Georeference',
    'Olinda',
    'Patch',
    'PatchPair',
    'Scene',
    'Scenes',
    'Sensor',
    'decode_crs',
    'split_by_area',
)
