# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""CMID as a TorchGeo task, and object detection on its backbones."""

from .cmid import CMID
from .detection import CMIDObjectDetection

__all__ = ('CMID', 'CMIDObjectDetection')
