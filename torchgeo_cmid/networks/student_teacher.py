# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The student, which sees masked views, and its teacher, which sees them whole."""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from ..transforms.masking import expand_mask, fill_with_spectral_mean
from .backbone import SpatialBackbone, feature_map
from .heads import MLP, Decoder, PrototypeHead
from .recompute import recompute_wide_maps

GlobalBranch = Literal['moco', 'byol'] | None


class Student(SpatialBackbone):
    """Backbone, mask token, and the heads of the three branches.

    Source: section III-A of `CMID <https://arxiv.org/abs/2304.09670>`__.

    Attributes:
        mask_token: Added to the stem's features where masked, (1, stem features).
        projector: Head of the global branch, where that is on.
        predictor: Identity but for BYOL.
        prototype_head: Head of the local branch, where that is on.
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
        reconstruction_branch: bool = True,
        projection_dim: int = 256,
        hidden_dim: int = 2048,
        num_prototypes: int = 2048,
        bottleneck_dim: int = 256,
        local_head_norm: bool | None = None,
        recompute: bool = True,
    ) -> None:
        """Initialize a new Student instance.

        Args:
            model: Name of the timm model.
            in_channels: Number of bands C.
            size: Height and width S of a view in pixels.
            pretrained: Start from timm's ImageNet weights.
            global_branch: Kind of the projector, None for none.
            local_branch: Whether there is a prototype head.
            reconstruction_branch: Whether there is a decoder.
            projection_dim: Length of the global embedding.
            hidden_dim: Length of the hidden layers of the heads.
            num_prototypes: Number of prototypes.
            bottleneck_dim: Length of the embedding that is compared with prototypes.
            local_head_norm: Batch norm in the prototype head. None: as the backbone.
            recompute: Compute wide maps anew in the backward pass, which takes less
                memory: see :mod:`torchgeo_cmid.networks.recompute`.

        Raises:
            ValueError: If the backbone gives no map of features.
        """
        super().__init__(model, in_channels, size, pretrained)
        self.recompute = recompute
        self.mask_token = nn.Parameter(torch.zeros(1, self.stem_features))
        # optimizer states know parameters by their order: do not change that of heads
        if global_branch is not None:
            norm = global_branch == 'byol'
            self.projector = MLP(self.num_features, hidden_dim, projection_dim, norm)
        if local_branch:
            if local_head_norm is None:
                norms = (nn.modules.batchnorm._BatchNorm,)
                backbone = self.backbone.modules()
                local_head_norm = any(isinstance(m, norms) for m in backbone)
            self.prototype_head = PrototypeHead(
                self.num_features,
                hidden_dim,
                bottleneck_dim,
                num_prototypes,
                local_head_norm,
            )
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
        with recompute_wide_maps(self.backbone, self.recompute):
            features = self.forward_masked(masked, self.mask_token, mask)
        # A view without contrast has nothing to teach the backbone, and each norm over
        # zeros would multiply its gradient by 1 / sqrt(eps), until it overflows.
        contrast = x.amax(dim=(2, 3)) - x.amin(dim=(2, 3))  # (B, C)
        varies = (contrast.amax(dim=1) > 1e-6).view(-1, 1, 1, 1)
        return features.where(varies, features.detach())


class Teacher(nn.Module):
    """The student's backbone, projector and prototype head, as their moving average.

    It normalises with the statistics of its own batches in training, and never has
    gradients.

    Source: section III-A of `CMID <https://arxiv.org/abs/2304.09670>`__.

    Attributes:
        backbone: The timm model.
        projector: Head of the global branch, where that is on.
        prototype_head: Head of the local branch, where that is on.
    """

    backbone: nn.Module
    projector: nn.Module
    prototype_head: nn.Module

    #: What of a student its teacher has as well.
    parts = ('backbone', 'projector', 'prototype_head')

    def __init__(self, student: Student) -> None:
        """Initialize a new Teacher instance.

        Args:
            student: The student; what the two share is copied.
        """
        super().__init__()
        for name in self.parts:
            if hasattr(student, name):
                self.add_module(name, copy.deepcopy(getattr(student, name)))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the last features of a whole view.

        Args:
            x: Views, (B, C, S, S).

        Returns:
            Map of features, (B, D, h, w).
        """
        return feature_map(self.backbone, x)

    @torch.no_grad()
    def update(self, student: Student, momentum: float) -> None:
        """Move the parameters towards the student's: m * teacher + (1 - m) * student.

        Args:
            student: The student.
            momentum: m, 1 leaves the teacher as it is.
        """
        names, parameters = zip(*self.named_parameters(), strict=True)
        targets: list[Tensor] = [student.get_parameter(name) for name in names]
        torch._foreach_lerp_(parameters, targets, 1 - momentum)
