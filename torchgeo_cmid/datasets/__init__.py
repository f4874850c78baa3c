# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets that TorchGeo lacks."""

from .olinda import Olinda
from .scene import Scene
from .scenes import Patch, Scenes
from .sensor import Sensor
from .splits import AreaSplit, split_by_area

__all__ = ('AreaSplit', 'Olinda', 'Patch', 'Scene', 'Scenes', 'Sensor', 'split_by_area')
