# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Numbers measured on the published implementation, and how to compare with them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent


def load_golden(name: str) -> dict[str, Tensor]:
    """Read the arrays of a golden file as tensors."""
    with np.load(FOLDER / f'{name}.npz') as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def official_keys(model: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name, shape and type of every tensor of a full published state."""
    keys = {}
    for line in (FOLDER / f'official_keys_{model}.txt').read_text().splitlines():
        name, shape, dtype = line.split('\t')
        sizes = tuple(
            int(size) for size in shape.strip('()').split(',') if size.strip()
        )
        keys[name] = (sizes, getattr(torch, dtype))
    return keys


def assert_relative(actual: Tensor, reference: Tensor, tolerance: float) -> None:
    """Compare relative to the largest absolute value of the reference."""
    error = (actual - reference).abs().max() / reference.abs().max()
    assert error <= tolerance, f'relative error {error:.2e} > {tolerance:.0e}'
