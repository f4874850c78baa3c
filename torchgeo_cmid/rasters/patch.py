# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Addresses of patches, and how two patches of one place lie to each other."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .scene import Scene, transformer

#: Places along each axis of a patch by which the frames of two are compared.
PROBES = 5


class Patch(NamedTuple):
    """Address of a square patch: what a sampler yields and a dataset reads."""

    #: Number of the scene in the dataset.
    scene: int
    #: First row, in pixels of the scene.
    row: int
    #: First column, in pixels of the scene.
    col: int
    #: Height and width in pixels of the scene.
    size: int


class PatchPair(NamedTuple):
    """Addresses of two patches of one place, the second on another date.

    Both are the same where there is no other date.
    """

    first: Patch
    second: Patch


def pixel_frame(
    scenes: tuple[Scene, Scene], pair: PatchPair, size: int
) -> NDArray[np.float64]:
    """Find where the pixels of one patch lie in another one of the same place.

    Args:
        scenes: The scenes of the two patches.
        pair: The two patches.
        size: Height and width in pixels to which both are brought.

    Returns:
        The affine matrix that comes closest to mapping pixels (x, y, 1) of the second
        to pixels of the first, (3, 3); pixel centres are integers. Where their
        coordinate reference systems differ it is exact to some 1e-3 of a pixel on a few
        kilometres of ground.
    """
    steps = np.linspace(0, size, PROBES)
    place = np.stack([axis.ravel() for axis in np.meshgrid(steps, steps)])  # (x, y)
    scene, patch = scenes[1], pair.second
    corner = np.array([[patch.col], [patch.row]])
    x, y = scene.transform @ tuple(corner + place * (patch.size / size))
    if scene.crs != scenes[0].crs:
        x, y = transformer(scene.crs, scenes[0].crs).transform(x, y)
    scene, patch = scenes[0], pair.first
    corner = np.array([[patch.col], [patch.row]])
    target = (np.stack(~scene.transform @ (x, y)) - corner) * (size / patch.size)
    source = np.concatenate([place - 0.5, np.ones((1, place.shape[1]))])
    matrix: NDArray[np.float64] = np.eye(3)
    matrix[:2] = np.linalg.lstsq(source.T, target.T - 0.5, rcond=None)[0].T
    return matrix


def resize_patch(image: Tensor, valid: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Bring a patch to another number of pixels, bilinearly.

    Args:
        image: The patch, (C, H, W), its fill pixels set to something harmless.
        valid: Its valid pixels, (1, H, W) bool.
        size: Height and width wanted.

    Returns:
        The patch, (C, size, size), and its valid pixels, (1, size, size) bool: those
        that no fill has a part in.
    """
    both = torch.cat([image, valid.to(image)])[None]
    both = F.interpolate(both, (size, size), mode='bilinear', antialias=True)[0]
    return both[:-1], both[-1:] > 1 - 1e-4
