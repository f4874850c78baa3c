# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Arguments of a CMID that is small enough for a test."""

from typing import Any

TINY: dict[str, Any] = {
    'size': 64,
    'mask_patch_size': 16,
    'queue_size': 16,
    'hidden_dim': 32,
    'num_prototypes': 32,
    'bottleneck_dim': 16,
}
