# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Files in the layout of the published ones, with random values."""

from pathlib import Path

import torch
from torch import Tensor

from tests.goldens import official_keys

PREFIX = 'online_encoder.model.'
#: Name of the model -> name of the list of its tensors in the goldens.
KEYS = {'cmid_resnet50': 'resnet50', 'cmid_swin_b': 'swin_b'}


def make_full_state(model: str, seed: int = 0) -> dict[str, Tensor]:
    """Random values under the names, shapes and types of a full published state."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (shape, dtype) in official_keys(KEYS[model]).items():
        if name.endswith('relative_position_index'):
            state[name] = relative_position_index()
        elif dtype == torch.int64:
            state[name] = torch.zeros(shape, dtype=dtype)
        elif name.endswith('running_var') or 'weight_g' in name:
            state[name] = torch.ones(shape)
        elif len(shape) == 1:  # biases, scales and shifts
            state[name] = 0.1 * torch.randn(shape, generator=generator)
            state[name] += name.endswith('weight')
        else:
            fan_in = max(torch.Size(shape[1:]).numel(), 1)
            state[name] = torch.randn(shape, generator=generator) / fan_in**0.5
    return state


def relative_position_index(window: int = 7) -> Tensor:
    """Index of the relative position of each pair of a window, as mmcls stores it."""
    row, column = torch.meshgrid(
        torch.arange(window), torch.arange(window), indexing='ij'
    )
    position = (2 * window - 1) * row.flatten() + column.flatten()
    return (position[:, None] + position[None]).flip(1)


def make_backbone(model: str, seed: int = 0) -> dict[str, Tensor]:
    """Random values under the names of a published backbone."""
    state = make_full_state(model, seed)
    return {
        name.removeprefix(PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(PREFIX)
    }


def write_cache(hub: Path) -> None:
    """Fill torch.hub's cache with a backbone of each model, as if fetched by hand."""
    folder = hub / 'checkpoints'
    folder.mkdir(parents=True)
    for model in KEYS:
        torch.save(make_backbone(model), folder / f'{model}_millionaid.pth')
