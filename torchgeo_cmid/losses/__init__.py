# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The three losses of CMID, as pure modules."""

from .contrastive import BYOLLoss, QueueInfoNCE
from .distillation import PrototypeDistillation
from .reconstruction import FrequencyLoss, SpatialLoss

__all__ = (
    'BYOLLoss',
    'FrequencyLoss',
    'PrototypeDistillation',
    'QueueInfoNCE',
    'SpatialLoss',
)
