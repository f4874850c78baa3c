# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The networks of the method: student and teacher, their backbone, their heads."""

from .backbone import SpatialBackbone
from .heads import MLP, Decoder, PrototypeHead
from .student_teacher import Student, Teacher

__all__ = ('MLP', 'Decoder', 'PrototypeHead', 'SpatialBackbone', 'Student', 'Teacher')
