# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Samplers that TorchGeo lacks."""

from .numbered import NumberedPatches
from .patches import GriddedScenePatchSampler, RandomScenePatchSampler
from .shuffled import RandomImageSampler

__all__ = (
    'GriddedScenePatchSampler',
    'NumberedPatches',
    'RandomImageSampler',
    'RandomScenePatchSampler',
)
