# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets that TorchGeo lacks."""

from .olinda import Olinda
from .patch import Patch, PatchPair
from .scene import Scene
from .scenes import Scenes
from .sensor import Sensor
from .splits import AreaSplit, split_by_area

__all__ = (
    'AreaSplit',
    'Olinda',
    'Patch',
    'PatchPair',
    'Scene',
    'Scenes',
    'Sensor',
    'split_by_area',
)
