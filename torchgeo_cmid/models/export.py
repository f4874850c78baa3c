# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""From a checkpoint back to a backbone that stands on its own, as safetensors."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from .loading import Network, extract_backbone, is_ours
from .official import OFFICIAL_BACKBONES
from .published import MEAN, STD
from .reading import read_weights

_TIMM_NAMES = {
    'conv1.weight': OFFICIAL_BACKBONES['conv1.weight'],
    'patch_embed.proj.weight': OFFICIAL_BACKBONES['patch_embed.projection.weight'],
}


def export_backbone(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    network: Network = 'student',
    bands: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights_only: bool = True,
) -> None:
    """Write the backbone of a checkpoint into a safetensors file.

    The file is taken by every *weights* argument, and by plain timm::

        model = timm.create_model(name, num_classes=0, in_chans=in_channels)
        model.load_state_dict(safetensors.torch.load_file(output))

    Its metadata holds ``model`` (timm's name), ``in_channels``, ``size``, ``network``
    and, as far as known, ``bands``, ``mean`` and ``std``, as JSON each.

    Args:
        checkpoint: Checkpoint of a pre-training with our task, or a published file,
            backbone or full.
        output: The file to write, ``*.safetensors``; it must not exist yet.
        network: Which network to take, 'student' or 'teacher'.
        bands: Names of the bands. None: those of the checkpoint's data module.
        mean: Mean of each band that the images were normalised with. None: those of the
            checkpoint's data module.
        std: Standard deviation of each band. None: as *mean*.
        weights_only: Refuse a file that pickles anything but tensors and plain values.
            With False foreign classes are replaced by empty stand-ins.

    Raises:
        FileExistsError: If *output* exists.
        ValueError: If *checkpoint* holds no such backbone, if *output* is named
            otherwise, or if *bands*, *mean* or *std* do not fit the number of bands.
    """
    path = Path(output)
    if path.suffix != '.safetensors':
        raise ValueError(f"output='{path}' must end with .safetensors")
    if path.exists():
        raise FileExistsError(f"output='{path}' exists: name another file")
    content = read_weights(checkpoint, weights_only)
    state = extract_backbone(content, str(checkpoint), network)
    facts = _known_facts(content, state, str(checkpoint))
    given = {'bands': bands, 'mean': mean, 'std': std}
    facts |= {name: list(value) for name, value in given.items() if value is not None}
    for name in given:
        if name in facts and len(facts[name]) != facts['in_channels']:
            raise ValueError(
                f'{name}={facts[name]} must have {facts["in_channels"]} values, one '
                f"for each band of '{checkpoint}'"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            part,
            metadata={
                'format': 'pt',
                'network': json.dumps(network),
                **{name: json.dumps(value) for name, value in facts.items()},
            },
        )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _known_facts(content: Any, state: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Gather what a file tells of the backbone's model and images."""
    if not is_ours(content):
        stem = next((name for name in _TIMM_NAMES if name in state), None)
        if stem is None:
            raise ValueError(
                f"'{source}' is neither a checkpoint of our task nor a published file"
            )
        return {
            'model': _TIMM_NAMES[stem],
            'in_channels': state[stem].shape[1],
            'size': 224,
            'bands': ['R', 'G', 'B'],
            'mean': list(MEAN),
            'std': list(STD),
        }
    facts = {
        key: content['hyper_parameters'][key]
        for key in ('model', 'in_channels', 'size')
    }
    for value in content.values():  # the state of our data module, if it was ours
        if isinstance(value, Mapping) and isinstance(
            value.get('normalization'), Mapping
        ):
            normalization = value['normalization']
            facts |= {key: list(normalization[key]) for key in ('bands', 'mean', 'std')}
    return facts
