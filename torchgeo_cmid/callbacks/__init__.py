# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What is shown of a run of CMID."""

from .report import PretrainingReport

__all__ = ('PretrainingReport',)
