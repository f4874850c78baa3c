# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Batches whose images are read where they are needed: no copy on their way out."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torchgeo.datasets import stack_samples
from torchgeo.datasets.utils import Sample


def empty_images(*shape: int) -> Tensor:
    """Allocate the images of a batch, in a worker where the trainer finds them.

    Args:
        *shape: (B, C, H, W).

    Returns:
        Memory to read into, float32: shared with the main process if this is a worker.
    """
    if get_worker_info() is None:
        return torch.empty(shape)
    # what torch's own default_collate does
    storage = torch.UntypedStorage._new_shared(  # type: ignore[no-untyped-call]
        4 * math.prod(shape)
    )
    return torch.empty(0).set_(storage, 0, shape)  # type: ignore[call-overload, no-any-return]


def stack_patches(samples: Sequence[Sample]) -> Sample:
    """Stack samples as TorchGeo does, but leave images where they are.

    Args:
        samples: Samples of a batch.

    Returns:
        The batch.
    """
    images = [sample['image'] for sample in samples]
    batch = images[0]._base
    if batch is None or batch.shape != (len(images), *images[0].shape):
        return stack_samples(samples)
    if any(
        image._base is not batch or image.data_ptr() != row.data_ptr()
        for image, row in zip(images, batch, strict=True)
    ):
        return stack_samples(samples)
    rest = [{k: v for k, v in sample.items() if k != 'image'} for sample in samples]
    return {'image': batch, **stack_samples(rest)}
