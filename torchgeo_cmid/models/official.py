# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The published checkpoints: safe to read, strictly accounted for, in timm's names."""

import os
import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

StateDict = dict[str, Tensor]

# timm's name of a Swin tensor -> its name in mmcls, which the authors built upon
_MMCLS_NAMES = (
    (r'^patch_embed\.proj\.', 'patch_embed.projection.'),
    (r'^layers\.(\d+)\.downsample\.', lambda m: f'stages.{int(m[1]) - 1}.downsample.'),
    (r'^layers\.(\d+)\.blocks\.', r'stages.\1.blocks.'),
    (r'\.attn\.', '.attn.w_msa.'),
    (r'\.mlp\.fc1\.', '.ffn.layers.0.0.'),
    (r'\.mlp\.fc2\.', '.ffn.layers.1.'),
    (r'^norm\.', 'norm3.'),
)

# Prefix in the CMID task -> prefix in the full published state
_PREFIXES = (
    ('student.backbone.', 'online_encoder.model.'),
    ('student.mask_token', 'online_encoder.mask_token'),
    ('student.decoder.0.', 'mim2org.decoder_pred.0.'),
    ('student.projector.0.', 'online_projector.layer.0.0.'),
    ('student.projector.2.', 'online_projector.layer.0.3.'),
    ('student.prototype_head.', 'class_projector.'),
    ('teacher.backbone.', 'branch_encoder.'),
    ('teacher.projector.0.', 'branch_projector.layer.0.0.'),
    ('teacher.projector.2.', 'branch_projector.layer.0.3.'),
    ('teacher.prototype_head.', 'branch_class_projector.'),
    ('contrastive.', ''),
    ('distillation.', 'class_loss.'),
)
_WEIGHT_NORM = (
    ('prototypes.parametrizations.weight.original0', 'last_layer.weight_g'),
    ('prototypes.parametrizations.weight.original1', 'last_layer.weight_v'),
)


def official_backbone_name(name: str) -> str:
    """Give the published name of a backbone's tensor.

    Args:
        name: timm's name, of a ResNet (the same) or a Swin (mmcls).

    Returns:
        The name in the authors' files.
    """
    if name.startswith(('patch_embed.', 'layers.', 'norm.')):
        for pattern, replacement in _MMCLS_NAMES:
            name = re.sub(pattern, replacement, name)
    return name


def official_name(name: str) -> str:
    """Give the published name of a tensor of the CMID task.

    Args:
        name: Name in the task's state dict.

    Returns:
        The name in the authors' full pre-training state.

    Raises:
        KeyError: If the published state has no such part.
    """
    for prefix, official in _PREFIXES:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            if '.backbone.' in prefix:
                rest = official_backbone_name(rest)
            for ours, theirs in _WEIGHT_NORM:
                rest = rest.replace(ours, theirs)
            return official + rest
    raise KeyError(name)


def from_patch_merging_order(name: str, tensor: Tensor) -> Tensor:
    """Reorder the 4C axis of Swin's patch merging from mmcls' order to timm's.

    mmcls unfolds a 2 x 2 neighbourhood to c * 4 + dh * 2 + dw, timm concatenates it to
    (dw * 2 + dh) * C + c. Without this every shape fits and every number is wrong.

    Args:
        name: timm's name of the tensor.
        tensor: The published tensor, (..., 4C) where it is a ``downsample`` of Swin.

    Returns:
        The tensor in timm's order; any other tensor as it is.
    """
    if not re.search(r'layers\.\d+\.downsample\.', name):
        return tensor
    neighbours = tensor.reshape(*tensor.shape[:-1], -1, 2, 2)  # (..., C, dh, dw)
    return neighbours.movedim((-1, -2, -3), (-3, -2, -1)).flatten(-3)


def convert_official_checkpoint(
    state_dict: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> StateDict:
    """Bring a full published pre-training state into the names of the CMID task.

    Args:
        state_dict: The authors' state, the value under the key ``model`` of their file.
        reference: State dict of a CMID task with the same backbone and the default
            heads.

    Returns:
        A state dict for the task, with every tensor of *reference*.

    Raises:
        ValueError: If a tensor is missing, unexpected or of another shape; all are
            named.
    """
    expected: dict[str, str | None] = {}  # official name -> ours, None: not needed
    for name in reference:
        try:
            official = official_name(name)
        except KeyError:
            raise ValueError(
                f'a published state has no {name}: it was trained with all branches '
                "on and global_branch='moco'"
            ) from None
        expected[official] = name
        if official.endswith('.relative_position_bias_table'):  # timm derives the index
            expected[official.replace('_bias_table', '_index')] = None

    problems = [f'missing: {name}' for name in expected if name not in state_dict]
    problems += [f'unexpected: {name}' for name in state_dict if name not in expected]
    converted: StateDict = {}
    for official, ours in expected.items():
        if ours is None or official not in state_dict:
            continue
        tensor, target = state_dict[official], reference[ours]
        if tensor.squeeze().shape != target.squeeze().shape:
            problems.append(
                f'shape {tuple(tensor.shape)} does not fit {tuple(target.shape)}: '
                f'{official}'
            )
            continue
        converted[ours] = from_patch_merging_order(ours, tensor).reshape(target.shape)
    if problems:
        raise ValueError(
            'this is no full CMID pre-training state for this model:\n  '
            + '\n  '.join(problems)
        )
    return converted


def load_official_state(
    path: str | os.PathLike[str], weights_only: bool = True
) -> StateDict:
    """Read the authors' full pre-training state from a file.

    Args:
        path: The file.
        weights_only: Refuse a file that pickles anything but tensors and plain values.
            The published files do pickle foreign classes: with False these are replaced
            by empty stand-ins, no code of theirs is imported or run.

    Returns:
        The tensors under the key ``model``.

    Raises:
        ValueError: If the file is no checkpoint, or unsafe while *weights_only*.
    """
    try:
        if weights_only:
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        else:
            checkpoint = torch.load(
                path, map_location='cpu', weights_only=False, pickle_module=_StandIns
            )
    except pickle.UnpicklingError as error:
        if weights_only and 'Unsupported global' in str(error):
            raise ValueError(
                f"'{path}' pickles objects that are no tensors, as the published files "
                'do. If you trust its source, pass weights_only=False: foreign classes '
                'are then replaced by empty stand-ins.'
            ) from error
        raise ValueError(f"'{path}' is no PyTorch checkpoint: {error}") from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"'{path}' is no PyTorch checkpoint: {error}") from error
    return unwrap_state(checkpoint, str(path))


def unwrap_state(checkpoint: Any, source: str) -> StateDict:
    """Find the tensors of a full published state.

    Args:
        checkpoint: What the file holds, or the value under its key ``model``.
        source: What to call it in an error.

    Returns:
        The tensors by their published names.

    Raises:
        ValueError: If there are none.
    """
    state = checkpoint
    if isinstance(state, Mapping) and isinstance(state.get('model'), Mapping):
        state = state['model']
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f'{source} holds no tensors under the key "model"')
    strangers = [name for name, value in state.items() if not torch.is_tensor(value)]
    if strangers:
        raise ValueError(
            f'{source} holds no state dict: {strangers[:5]} are no tensors'
        )
    return dict(state)


class _StandIn(dict[Any, Any]):
    """Takes the place of a foreign object; keeps nothing and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def __call__(self, *args: object, **kwargs: object) -> '_StandIn':
        """Stand in for what a foreign function would have returned."""
        return _StandIn()

    def __setstate__(self, state: object) -> None:
        """Forget the state."""

    def append(self, item: object) -> None:
        """Forget the item."""

    def extend(self, items: object) -> None:
        """Forget the items."""


# Storages are resolved by torch.load itself
_TENSOR_GLOBALS = {
    'collections': {'OrderedDict'},
    'torch': {'Size', 'device'},
    'torch._utils': {'_rebuild_parameter', '_rebuild_tensor', '_rebuild_tensor_v2'},
}


class _StandIns:
    """A pickle module for :func:`torch.load` that resolves tensors and nothing else."""

    class Unpickler(pickle.Unpickler):
        """Unpickler that resolves what a tensor needs and stands in for the rest."""

        def find_class(self, module: str, name: str) -> Any:
            """Resolve a global of the pickle."""
            if name in _TENSOR_GLOBALS.get(module, ()):
                return super().find_class(module, name)
            return _StandIn

    load = staticmethod(pickle.load)
