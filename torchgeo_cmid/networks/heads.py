# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The heads on the feature map: projection, prediction, prototypes, reconstruction."""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class MLP(nn.Sequential):
    """Linear - [batch norm] - ReLU - Linear: projector and predictor.

    Source: section III-C of `CMID <https://arxiv.org/abs/2304.09670>`__.
    """

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int, norm: bool = False
    ) -> None:
        """Initialize a new MLP instance, (B, in_dim) -> (B, out_dim).

        Args:
            in_dim: Length of the input.
            hidden_dim: Length of the hidden layer.
            out_dim: Length of the output.
            norm: Batch norm before the ReLU, as in BYOL.
        """
        hidden = [nn.BatchNorm1d(hidden_dim)] if norm else []
        super().__init__(
            nn.Linear(in_dim, hidden_dim),
            *hidden,
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, out_dim),
        )


class PrototypeHead(nn.Module):
    """MLP on cells, L2 normalisation, and cosine to weight-normed prototypes.

    Linear(D, hidden) - [BN] - GELU - Linear(hidden, hidden) - [BN] - GELU -
    Linear(hidden, bottleneck), then prototypes without bias, their gain frozen at 1.
    The batch norm runs over all cells that it is given.

    Source: section III-D of `CMID <https://arxiv.org/abs/2304.09670>`__, after
    `DINO <https://arxiv.org/abs/2104.14294>`__, appendix C.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_prototypes: int = 2048,
        norm: bool = True,
    ) -> None:
        """Initialize a new PrototypeHead instance.

        Args:
            in_dim: Number D of channels of the feature map.
            hidden_dim: Length of the hidden layers.
            bottleneck_dim: Length of the normalised embedding.
            num_prototypes: Number of prototypes.
            norm: Batch norm before each GELU.
        """
        super().__init__()
        layers: list[nn.Module] = []
        for dim in (in_dim, hidden_dim):
            layers.append(nn.Linear(dim, hidden_dim))
            if norm:
                layers.append(nn.BatchNorm1d(hidden_dim))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        self.prototypes = weight_norm(
            nn.Linear(bottleneck_dim, num_prototypes, bias=False)
        )
        gain = self.prototypes.get_parameter('parametrizations.weight.original0')
        nn.init.ones_(gain).requires_grad_(False)

    def forward(self, cells: Tensor) -> Tensor:
        """Compute the prototype logits.

        Args:
            cells: Features of cells, (N, D).

        Returns:
            Cosines to the prototypes, (N, prototypes).
        """
        embedding = nn.functional.normalize(self.mlp(cells), dim=1)
        logits: Tensor = self.prototypes(embedding)
        return logits


class Decoder(nn.Sequential):
    """One linear layer per cell and pixel shuffle: the map back to pixels.

    Source: section III-B of `CMID <https://arxiv.org/abs/2304.09670>`__.
    """

    def __init__(self, in_dim: int, out_channels: int, stride: int) -> None:
        """Initialize a new Decoder instance, (B, D, h, w) -> (B, C, S, S).

        Args:
            in_dim: Number D of channels of the feature map.
            out_channels: Number of bands C.
            stride: Pixels s per cell, S = s h.
        """
        super().__init__(
            nn.Conv2d(in_dim, stride**2 * out_channels, kernel_size=1),
            nn.PixelShuffle(stride),
        )
