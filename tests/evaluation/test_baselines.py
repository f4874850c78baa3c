# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Statistics of images."""

import torch

from torchgeo_cmid.evaluation import cell_statistics, image_statistics


def test_known_image() -> None:
    """Stripes of -1 and 3 have mean 1 and standard deviation 2; the rest is flat."""
    image = torch.zeros(2, 2, 4, 4)
    image[:, 0, ::2], image[:, 0, 1::2] = -1, 3
    image[1, 1] = 1e4
    expected = torch.tensor([[1.0, 0, 2, 0], [1, 1e4, 2, 0]])
    torch.testing.assert_close(image_statistics(image), expected)


def test_cells() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 12)
    found = cell_statistics(images, (2, 3))
    assert found.shape == (2, 6, 2, 3)
    corner = images[:, :, 4:, 8:].flatten(2)
    expected = torch.cat([corner.mean(-1), corner.std(-1, correction=0)], dim=1)
    torch.testing.assert_close(found[:, :, 1, 2], expected)
