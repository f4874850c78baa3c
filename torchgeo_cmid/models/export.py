# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""From a checkpoint back to a backbone that stands on its own, as safetensors."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from .architectures import ARCHITECTURES
from .loading import (
    BackboneState,
    Network,
    extract_backbone,
    get_state_dict,
    is_ours,
    is_published,
)
from .normalization import Pixels, check_unit
from .official import expected_tensors
from .published import WEIGHTS
from .reading import read_metadata, read_weights


def export_backbone(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    network: Network = 'student',
    model: str | None = None,
    bands: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    unit: float | None = None,
    weights_only: bool = True,
) -> None:
    """Write the backbone of a checkpoint into a safetensors file.

    The file is taken by every *weights* argument, and by plain timm::

        model = timm.create_model(name, num_classes=0, in_chans=in_channels)
        model.load_state_dict(safetensors.torch.load_file(output))

    Its metadata holds ``model`` (timm's name), ``in_channels`` and, as far as known,
    ``size``, ``network``, and the pixels it was trained on: ``bands``, ``mean``,
    ``std`` and ``unit``, as JSON each. What is not known is not there.

    Args:
        checkpoint: Checkpoint of a pre-training with our task, the name of a published
            weight, such as 'cmid_swin_b', or a file: published (backbone or full), of
            this function, or a plain state dict by timm's names.
        output: The file to write, ``*.safetensors``; it must not exist yet.
        network: Which network to take, 'student' or 'teacher'.
        model: timm's name of the model, for files that do not tell.
        bands: Names of the bands. None: as far as *checkpoint* tells.
        mean: Mean of each band that the images were normalised with, in raw numbers.
            None: as far as *checkpoint* tells.
        std: Standard deviation of each band. None: as *mean*.
        unit: The raw number that stands for 1. None: as *mean*.
        weights_only: Refuse a file that pickles anything but tensors and plain values.
            With False foreign classes are replaced by empty stand-ins.

    Raises:
        FileExistsError: If *output* exists.
        ValueError: If *checkpoint* holds no such backbone, if it does not tell which
            model it is, if *output* is named otherwise, or if *bands*, *mean* or *std*
            do not fit the number of bands, or *std* or *unit* is not positive.
    """
    path = Path(output)
    if path.suffix != '.safetensors':
        raise ValueError(f"output='{path}' must end with .safetensors")
    if path.exists():
        raise FileExistsError(f"output='{path}' exists: name another file")
    found, facts = _read(checkpoint, network, weights_only)
    state: Mapping[str, torch.Tensor] = found
    if 'in_channels' not in facts:
        facts |= _find_model(state, model or facts.get('model'), str(checkpoint))
        backbone = expected_tensors(facts['model'])  # a classifier is no part of it
        state = {name: tensor for name, tensor in state.items() if name in backbone}
    given = {'bands': bands, 'mean': mean, 'std': std}
    facts |= {name: list(value) for name, value in given.items() if value is not None}
    if unit is not None:
        facts['unit'] = unit
    for name in given:
        if name in facts and len(facts[name]) != facts['in_channels']:
            raise ValueError(
                f'{name}={facts[name]} must have {facts["in_channels"]} values, one '
                f"for each band of '{checkpoint}'"
            )
    if ('mean' in facts) != ('std' in facts):
        raise ValueError('mean and std go together: give both or neither')
    check_unit(facts.get('unit'))
    if 'mean' in facts:
        Pixels.from_state(facts)  # refuses what is no mean and std
        if min(facts['std']) < 0 and std is not None:
            raise ValueError(f'std={facts["std"]}: every value must be positive')
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            part,
            metadata={
                'format': 'pt',
                **{name: json.dumps(value) for name, value in facts.items()},
            },
        )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read(
    checkpoint: str | os.PathLike[str], network: Network, weights_only: bool
) -> tuple[BackboneState, dict[str, Any]]:
    """Read a backbone, and what its file tells of it."""
    published = {
        str(weight)
        for weights in WEIGHTS.values()
        for weight in weights.__members__.values()
    }
    if str(checkpoint) in published and not os.path.exists(checkpoint):
        state = get_state_dict(str(checkpoint))
        return state, {'size': 224, **_pixel_facts(state.pixels)}
    content = read_weights(checkpoint, weights_only)
    metadata = read_metadata(checkpoint)
    state = extract_backbone(content, str(checkpoint), network, metadata)
    facts: dict[str, Any] = {'model': state.model} if state.model else {}
    if is_ours(content):
        arguments = content['hyper_parameters']
        facts |= {'network': network} | {
            name: arguments[name] for name in ('in_channels', 'size')
        }
    elif is_published(content):
        facts |= {'size': 224, 'network': network}
    facts |= {
        name: json.loads(metadata[name])
        for name in ('in_channels', 'size', 'network')
        if name in metadata
    }
    return state, facts | _pixel_facts(state.pixels)


def _pixel_facts(pixels: Pixels | None) -> dict[str, Any]:
    """Tell what is known of the pixels."""
    facts = {} if pixels is None else pixels.to_state()
    return {name: value for name, value in facts.items() if value not in (None, False)}


def _find_model(
    state: Mapping[str, torch.Tensor], model: str | None, source: str
) -> dict[str, Any]:
    """Make sure which timm model the tensors are, and for how many bands."""
    names = [model] if model else [each.timm_name for each in ARCHITECTURES.values()]
    for name in names:
        if not timm.is_model(name):
            raise ValueError(f"model='{name}' is not a timm model")
        expected = expected_tensors(name)
        stem = f'{timm.get_pretrained_cfg(name).first_conv}.weight'  # type: ignore[union-attr]
        rest = {k: v.shape for k, v in state.items() if k in expected and k != stem}
        if stem in state and rest == {
            k: v.shape for k, v in expected.items() if k != stem
        }:
            return {'model': name, 'in_channels': state[stem].shape[1]}
    if model is None:
        raise ValueError(
            f"'{source}' does not tell which timm model it is, and is neither a "
            f'checkpoint of our task nor a {" or a ".join(names)}: pass model'
        )
    raise ValueError(f"the tensors of '{source}' are not those of model='{model}'")
