# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The published checkpoints: safe to read, strictly accounted for, in timm's names."""

import os
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from .architectures import ARCHITECTURES, Architecture
from .reading import read_weights

StateDict = dict[str, Tensor]

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


def find_architecture(state_dict: Mapping[str, Tensor]) -> Architecture | None:
    """Find the architecture that tensors are of.

    It is known by its stem; of several with that stem it is the one of which the most
    tensors are there, in their shape.

    Args:
        state_dict: Tensors by their names, timm's or the authors'.

    Returns:
        The architecture; None if it is none that was published.
    """
    found = [
        each
        for each in ARCHITECTURES.values()
        if each.stem in state_dict or each.official_stem in state_dict
    ]
    if len(found) < 2:
        return next(iter(found), None)
    shapes = {name: tensor.shape for name, tensor in state_dict.items()}
    return max(
        found,
        key=lambda each: sum(
            tensor.shape
            in (shapes.get(name), shapes.get(official_backbone_name(name, each)))
            for name, tensor in expected_tensors(each.timm_name).items()
        ),
    )


def expected_tensors(model: str) -> StateDict:
    """Give the tensors of a timm model without a classifier.

    Args:
        model: timm's name of it.

    Returns:
        The tensors by their names, on the meta device: they have shapes alone.
    """
    with torch.device('meta'):
        return timm.create_model(model, num_classes=0).state_dict()


def official_backbone_name(name: str, architecture: Architecture | None) -> str:
    """Give the published name of a backbone's tensor.

    Args:
        name: timm's name.
        architecture: The architecture. None: names are the same.

    Returns:
        The name in the authors' files.
    """
    if architecture is not None:
        for pattern, replacement in architecture.official_names:
            name = re.sub(pattern, replacement, name)
    return name


def official_name(name: str, architecture: Architecture | None) -> str:
    """Give the published name of a tensor of the CMID task.

    Args:
        name: Name in the task's state dict.
        architecture: The architecture of the backbone.

    Returns:
        The name in the authors' full pre-training state.

    Raises:
        KeyError: If the published state has no such part.
    """
    for prefix, official in _PREFIXES:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            if '.backbone.' in prefix:
                rest = official_backbone_name(rest, architecture)
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
    names: dict[str, str] = {}  # official name -> ours
    prefix = 'student.backbone.'
    architecture = find_architecture(
        {k.removeprefix(prefix): v for k, v in reference.items()}
    )
    for name in reference:
        try:
            official = official_name(name, architecture)
        except KeyError:
            raise ValueError(
                f'a published state has no {name}: it was trained with all branches '
                "on and global_branch='moco'"
            ) from None
        names[official] = name
    return _account(
        state_dict,
        _expect(names),
        reference,
        'this is no full CMID pre-training state for this model',
    )


def convert_official_backbone(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Bring a published backbone into timm's names.

    Args:
        state_dict: The authors' tensors: of a ResNet-50, or of a Swin-B by the names of
            mmcls.

    Returns:
        The state dict of timm's ``resnet50`` or ``swin_base_patch4_window7_224``
        without a classifier.

    Raises:
        ValueError: If it is neither, or if a tensor is missing, unexpected or of
            another shape; all are named.
    """
    architecture = find_architecture(state_dict)
    if architecture is None or architecture.official_stem not in state_dict:
        stems = ' and '.join(each.official_stem for each in ARCHITECTURES.values())
        raise ValueError(
            f'this is no published backbone: it has none of the tensors {stems}'
        )
    model = architecture.timm_name
    reference = expected_tensors(model)
    expected = {
        official: name
        for official, name in _expect(
            {official_backbone_name(name, architecture): name for name in reference}
        ).items()
        if name is not None or official in state_dict  # files without an index occur
    }
    return _account(
        state_dict, expected, reference, f'this is no published backbone for {model}'
    )


def _expect(names: Mapping[str, str]) -> dict[str, str | None]:
    """Add what a published state holds and timm derives, as None: it is not needed."""
    expected: dict[str, str | None] = dict(names)
    for official in names:
        if official.endswith('.relative_position_bias_table'):
            expected[official.replace('_bias_table', '_index')] = None
    return expected


def _account(
    state_dict: Mapping[str, Tensor],
    expected: Mapping[str, str | None],
    reference: Mapping[str, Tensor],
    refusal: str,
) -> StateDict:
    """Convert a published state, with every tensor accounted for.

    Args:
        state_dict: The published tensors.
        expected: Published name -> name here, None for what is not needed.
        reference: State dict that gives the shapes here.
        refusal: How an error begins.

    Returns:
        A state dict with the names of *reference*.

    Raises:
        ValueError: If a tensor is missing, unexpected or of another shape.
    """
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
        raise ValueError(f'{refusal}:\n  ' + '\n  '.join(problems))
    return converted


def load_official_state(
    path: str | os.PathLike[str], weights_only: bool = True
) -> StateDict:
    """Read the authors' full pre-training state from a file.

    Args:
        path: The file.
        weights_only: See :func:`~torchgeo_cmid.models.reading.read_weights`.

    Returns:
        The tensors under the key ``model``.

    Raises:
        ValueError: If the file is no checkpoint, or unsafe while *weights_only*.
    """
    return unwrap_state(read_weights(path, weights_only), str(path))


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
