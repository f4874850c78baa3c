# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""CMID as a TorchGeo task."""

from .cmid import CMID

__all__ = ('CMID',)
