# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What serves a run or is shown of it, and is no part of a task."""

from .evaluation import Evaluation
from .pixel_contract import PixelContract
from .report import PretrainingReport

__all__ = ('Evaluation', 'PixelContract', 'PretrainingReport')
