# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The student, which sees masked views, and its teacher, which sees them whole."""

from typing import Literal

import torch
from torch import Tensor, nn

from ..transforms.masking import expand_mask, fill_with_spectral_mean
from .backbone import SpatialBackbone
from .heads import MLP, Decoder, PrototypeHead
from .recompute import recompute_wide_maps

GlobalBranch = Literal['moco', 'byol'] | None


class Teacher(SpatialBackbone):
    """Backbone and heads that the teacher shares with the student by name.

    It is the exponential moving average of the student's parameters, normalises with
    the statistics of its own batches in training, and never has gradients.

    Source: section III-A of `CMID <https://arxiv.org/abs/2304.09670>`__.

    Attributes:
        projector: Head of the global branch, where that is on.
        prototype_head: Head of the local branch, where that is on.
    """

    def __init__(
        self,
        model: str = 'resnet50',
        in_channels: int = 3,
        size: int = 224,
        pretrained: bool = False,
        global_branch: GlobalBranch = 'moco',
        local_branch: bool = True,
        projection_dim: int = 256,
        hidden_dim: int = 2048,
        num_prototypes: int = 2048,
        bottleneck_dim: int = 256,
        local_head_norm: bool | None = None,
    ) -> None:
        """Initialize a new Teacher instance.

        Args:
            model: Name of the timm model.
            in_channels: Number of bands C.
            size: Height and width S of a view in pixels.
            pretrained: Start from timm's ImageNet weights.
            global_branch: Kind of the projector, None for none.
            local_branch: Whether there is a prototype head.
            projection_dim: Length of the global embedding.
            hidden_dim: Length of the hidden layers of the heads.
            num_prototypes: Number of prototypes.
            bottleneck_dim: Length of the embedding that is compared with prototypes.
            local_head_norm: Batch norm in the prototype head. None: as the backbone.

        Raises:
            ValueError: If the backbone gives no map of features.
        """
        super().__init__(model, in_channels, size, pretrained)
        if global_branch is not None:
            norm = global_branch == 'byol'
            self.projector = MLP(self.num_features, hidden_dim, projection_dim, norm)
        if local_branch:
            if local_head_norm is None:
                norms = (nn.modules.batchnorm._BatchNorm,)
                local_head_norm = any(isinstance(m, norms) for m in self.modules())
            self.prototype_head = PrototypeHead(
                self.num_features,
                hidden_dim,
                bottleneck_dim,
                num_prototypes,
                local_head_norm,
            )

    def follow(self, student: 'Student') -> None:
        """Copy the student's parameters and buffers, and stop all gradients.

        Args:
            student: The student of the same architecture.
        """
        names = self.state_dict().keys()
        state = student.state_dict()
        self.load_state_dict({name: state[name] for name in names})
        self.requires_grad_(False)

    @torch.no_grad()
    def update(self, student: 'Student', momentum: float) -> None:
        """Move the parameters towards the student's: m * teacher + (1 - m) * student.

        Args:
            student: The student of the same architecture.
            momentum: m, 1 leaves the teacher as it is.
        """
        names, parameters = zip(*self.named_parameters(), strict=True)
        targets: list[Tensor] = [student.get_parameter(name) for name in names]
        torch._foreach_lerp_(parameters, targets, 1 - momentum)


class Student(Teacher):
    """A teacher's network with a mask token, a decoder and, for BYOL, a predictor.

    Attributes:
        mask_token: Added to the stem's features where masked, (1, stem features).
        predictor: Identity but for BYOL.
        decoder: Head of the reconstruction branch, where that is on.
    """

    def __init__(
        self,
        model: str = 'resnet50',
        in_channels: int = 3,
        size: int = 224,
        pretrained: bool = False,
        global_branch: GlobalBranch = 'moco',
        local_branch: bool = True,
        projection_dim: int = 256,
        hidden_dim: int = 2048,
        num_prototypes: int = 2048,
        bottleneck_dim: int = 256,
        local_head_norm: bool | None = None,
        reconstruction_branch: bool = True,
    ) -> None:
        """Initialize a new Student instance.

        Args:
            model: Name of the timm model.
            in_channels: Number of bands C.
            size: Height and width S of a view in pixels.
            pretrained: Start from timm's ImageNet weights.
            global_branch: Kind of the projector, None for none.
            local_branch: Whether there is a prototype head.
            projection_dim: Length of the global embedding.
            hidden_dim: Length of the hidden layers of the heads.
            num_prototypes: Number of prototypes.
            bottleneck_dim: Length of the embedding that is compared with prototypes.
            local_head_norm: Batch norm in the prototype head. None: as the backbone.
            reconstruction_branch: Whether there is a decoder.

        Raises:
            ValueError: If the backbone gives no map of features.
        """
        super().__init__(
            model,
            in_channels,
            size,
            pretrained,
            global_branch,
            local_branch,
            projection_dim,
            hidden_dim,
            num_prototypes,
            bottleneck_dim,
            local_head_norm,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, self.stem_features))
        self.predictor: nn.Module = nn.Identity()
        if global_branch == 'byol':
            self.predictor = MLP(
                projection_dim, 2 * projection_dim, projection_dim, True
            )
        if reconstruction_branch:
            self.decoder = Decoder(self.num_features, in_channels, self.stride)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the last features of a masked view.

        Masked pixels are set to the spectral mean of their image, and the mask token is
        added to the features of masked positions right after the stem.

        Args:
            x: Views, (B, C, S, S).
            mask: Mask of cells, (B, n, n) bool, True = masked. None: nothing is.

        Returns:
            Map of features, (B, D, h, w).
        """
        if mask is None:
            return super().forward(x)
        masked = fill_with_spectral_mean(x, expand_mask(mask, x.shape[-1]))
        with recompute_wide_maps(self.backbone):
            features = self.forward_masked(masked, self.mask_token, mask)
        # A view without contrast has nothing to teach the backbone, and each norm over
        # zeros would multiply its gradient by 1 / sqrt(eps), until it overflows.
        contrast = x.amax(dim=(2, 3)) - x.amin(dim=(2, 3))  # (B, C)
        varies = (contrast.amax(dim=1) > 1e-6).view(-1, 1, 1, 1)
        return features.where(varies, features.detach())
