# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights of TorchGeo and of ours in the ResNets of torchvision's detectors.

Torchvision takes its own weights alone. Its ResNets have the same tensors by the same
names as timm's, bar the classifier, which a detector has none of.
"""

from typing import Any

import torchvision
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import nn
from torch.nn.parameter import Parameter
from torchvision.models import WeightsEnum
from torchvision.ops import FrozenBatchNorm2d

from .bands import adapt_stem
from .loading import get_state_dict, load_strictly

#: What torchvision trains of a backbone that has weights.
TRAINED = ('layer2', 'layer3', 'layer4')


def is_torchvision(weights: Any, backbone: str) -> bool:
    """Tell weights that torchvision itself loads from others.

    Args:
        weights: A weight enum, its name, a file, or nothing.
        backbone: Name of torchvision's backbone.

    Returns:
        Whether torchvision knows them, or there are none.
    """
    if not weights or weights is True:
        return True
    known = torchvision.models.get_model_weights(backbone)
    if isinstance(weights, WeightsEnum):
        return isinstance(weights, known)
    return str(weights).removeprefix(f'{known.__name__}.') in known.__members__


def load_body(
    body: nn.Module, weights: WeightsEnum | str, in_channels: int, freeze: bool = False
) -> None:
    """Load weights into the ResNet of a detector, and freeze its norms.

    As in torchvision, norms of a backbone that has weights are frozen: they take mean
    and variance from the weights.

    Args:
        body: The ResNet, ``conv1`` to ``layer4``.
        weights: A weight enum of TorchGeo, its name, or a file.
        in_channels: Number of bands of the images.
        freeze: Train the last three stages alone, as torchvision does by default.

    Raises:
        ValueError: If there are no such weights, or they are of another architecture.
    """
    state = get_state_dict(weights)
    stem = state.get('conv1.weight')
    if stem is None or 'layer4.0.conv1.weight' not in state:
        raise ValueError(
            f"weights='{weights}' are of {state.model or 'no ResNet'}: torchvision's "
            'detectors have ResNets; for others use the task CMIDObjectDetection'
        )
    conv1: Any = body.get_submodule('conv1')
    kernels = adapt_stem(stem, in_channels, f"'{weights}'")
    conv1.weight = Parameter(kernels.clone(), conv1.weight.requires_grad)
    conv1.in_channels = in_channels
    frozen = any(isinstance(module, FrozenBatchNorm2d) for module in body.modules())
    fitting = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith('fc.')
        and not (frozen and name.endswith('num_batches_tracked'))
    }
    load_strictly(body, fitting | {'conv1.weight': kernels}, str(weights))
    if not frozen:
        freeze_batch_norm_2d(body)  # type: ignore[no-untyped-call]
    if freeze:
        for name, parameter in body.named_parameters():
            if not name.startswith(TRAINED):
                parameter.requires_grad_(False)
