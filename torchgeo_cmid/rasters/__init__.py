# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What a file of pixels is, and how a window of it is read."""

from .georeference import Georeference, decode_crs
from .patch import Patch, PatchPair
from .scene import Scene
from .sensor import Sensor

__all__ = ('Georeference', 'Patch', 'PatchPair', 'Scene', 'Sensor', 'decode_crs')
