# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A feature pyramid on one of our encoders, for detectors of torchvision."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool


class PyramidBackbone(nn.Module):
    """A feature pyramid on an encoder's maps at strides 4, 8, 16 and 32.

    Batch norm is frozen below it: a batch of a detector is too small for statistics.
    """

    out_channels = 256

    def __init__(self, encoder: nn.Module) -> None:
        """Initialize a new PyramidBackbone instance.

        Args:
            encoder: An encoder of segmentation_models_pytorch with five stages.
        """
        super().__init__()
        self.encoder = encoder
        self.fpn = FeaturePyramidNetwork(
            encoder.out_channels[2:],  # type: ignore[index]
            self.out_channels,
            extra_blocks=LastLevelMaxPool(),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the pyramid.

        Args:
            x: Images, (B, C, H, W).

        Returns:
            Maps of 256 channels at strides 4, 8, 16, 32 and 64, by their names.
        """
        maps = self.encoder(x)[2:]
        pyramid: dict[str, Tensor] = self.fpn(
            OrderedDict((str(level), features) for level, features in enumerate(maps))
        )
        return pyramid
