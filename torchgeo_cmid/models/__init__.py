# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Student and teacher, their heads, and the published weights."""

from .backbone import SpatialBackbone
from .bands import adapt_bands
from .export import export_backbone
from .heads import MLP, PrototypeHead
from .networks import Student, Teacher
from .official import convert_official_backbone, convert_official_checkpoint
from .published import CMIDResNet50_Weights, CMIDSwinB_Weights
from .transfer import cmid_resnet50, cmid_swin_b

__all__ = (
    'MLP',
    'CMIDResNet50_Weights',
    'CMIDSwinB_Weights',
    'PrototypeHead',
    'SpatialBackbone',
    'Student',
    'Teacher',
    'adapt_bands',
    'cmid_resnet50',
    'cmid_swin_b',
    'convert_official_backbone',
    'convert_official_checkpoint',
    'export_backbone',
)
