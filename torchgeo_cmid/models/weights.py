# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Where a backbone starts from: a weight of TorchGeo, or a file."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchgeo.models import get_weight
from torchvision.models._api import WeightsEnum


def load_backbone(backbone: nn.Module, weights: WeightsEnum | str) -> None:
    """Load the weights of a backbone strictly.

    Args:
        backbone: The timm model.
        weights: A weight enum of TorchGeo, its name, or the path to a file that holds
            the model's state dict or a checkpoint of a CMID task.

    Raises:
        ValueError: If there is no such weight or file, or if a tensor is missing,
            unexpected or of another shape; all are named.
    """
    if isinstance(weights, WeightsEnum):
        state = weights.get_state_dict(
            progress=True, check_hash=True, weights_only=True
        )
    elif os.path.exists(weights):
        state = _read(weights)
    else:
        try:
            weight = get_weight(weights)
        except ValueError as error:
            raise ValueError(
                f"weights='{weights}' is neither a file nor a weight of TorchGeo"
            ) from error
        state = weight.get_state_dict(progress=True, check_hash=True, weights_only=True)
    load_strictly(backbone, state, str(weights))


def _read(path: str) -> Mapping[str, Tensor]:
    """Read the tensors of a backbone from a file."""
    checkpoint: Any = torch.load(path, map_location='cpu', weights_only=True)
    if 'state_dict' in checkpoint:  # of Lightning
        prefix = 'student.backbone.'
        checkpoint = {
            name.removeprefix(prefix): tensor
            for name, tensor in checkpoint['state_dict'].items()
            if name.startswith(prefix)
        }
        if not checkpoint:
            raise ValueError(f"'{path}' is no checkpoint of CMID: it has no student")
    state: Mapping[str, Tensor] = checkpoint
    return state


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict, with every tensor accounted for.

    Args:
        model: The model.
        state: Its tensors by name.
        source: What to call the state in an error.

    Raises:
        ValueError: If a tensor is missing, unexpected or of another shape; all are
            named, and the model is left as it was.
    """
    expected = model.state_dict()
    problems = [f'missing: {name}' for name in expected if name not in state]
    problems += [f'unexpected: {name}' for name in state if name not in expected]
    problems += [
        f'shape {tuple(state[name].shape)} does not fit {tuple(tensor.shape)}: {name}'
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(
            f"'{source}' does not fit this backbone:\n  " + '\n  '.join(problems)
        )
    model.load_state_dict(dict(state))
