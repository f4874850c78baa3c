# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""How large a value may be for all that is computed from it to stay finite."""

import torch
from torch import Tensor

# The spectrum is squared in single precision, and norms square what they are given.
_LARGEST = 1e6
# A convolution sums many products, in half precision up to 65,504 under autocast.
_LARGEST_IN_HALF = 1e4


def limit_values(image: Tensor) -> Tensor:
    """Limit huge values, such as fill that nobody has declared.

    Normalised values are of the order of 1, and digital numbers below the limit as
    well: they are left as they are. So are infinities and NaN, which are errors.

    Args:
        image: Images, any shape.

    Returns:
        Images within 1e6, or within 1e4 where autocast computes in half precision.
    """
    device, limit = image.device.type, _LARGEST
    if torch.is_autocast_enabled(device):
        half = torch.get_autocast_dtype(device) == torch.float16
        limit = _LARGEST_IN_HALF if half else _LARGEST
    return image.clamp(-limit, limit).where(image.isfinite(), image)
