# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What get_model and get_weight give: published backbones, their loading, export."""

from typing import Any

from ..moved import find_name
from .bands import adapt_bands
from .export import export_backbone
from .official import convert_official_backbone, convert_official_checkpoint
from .published import CMIDResNet50_Weights, CMIDSwinB_Weights
from .transfer import cmid_resnet50, cmid_swin_b

__all__ = (
    'CMIDResNet50_Weights',
    'CMIDSwinB_Weights',
    'adapt_bands',
    'cmid_resnet50',
    'cmid_swin_b',
    'convert_official_backbone',
    'convert_official_checkpoint',
    'export_backbone',
)


def __getattr__(name: str) -> Any:
    """Find a name that was here before the networks had a folder of their own.

    Args:
        name: The name that this module does not hold.

    Returns:
        What it stands for.
    """
    return find_name(__name__, name)
