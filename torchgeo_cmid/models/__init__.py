# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Student and teacher, their heads, and the published weights."""

from .backbone import SpatialBackbone
from .heads import MLP, PrototypeHead
from .networks import Student, Teacher
from .official import convert_official_checkpoint

__all__ = (
    'MLP',
    'PrototypeHead',
    'SpatialBackbone',
    'Student',
    'Teacher',
    'convert_official_checkpoint',
)
