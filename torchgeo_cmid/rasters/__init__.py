# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What a file of pixels is, and how a window of it is read."""

from .patch import Patch, PatchPair
from .scene import Scene
from .sensor import Sensor

__all__ = ('Patch', 'PatchPair', 'Scene', 'Sensor')
