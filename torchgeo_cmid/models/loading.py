# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Where a backbone starts from: a weight of TorchGeo, or a file."""

import json
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from .bands import adapt_stem
from .normalization import PUBLISHED, Pixels, find_pixels
from .official import (
    StateDict,
    convert_official_backbone,
    find_architecture,
    unwrap_state,
)
from .reading import read_metadata, read_weights

Network = Literal['student', 'teacher']

# Where a full published state holds the networks, see official.py
_OFFICIAL_PREFIXES = {'student': 'online_encoder.model.', 'teacher': 'branch_encoder.'}


#: Where other packages keep what they have pre-trained, the more specific name first;
#: of a pair, the network that their authors evaluate.
FOREIGN_PREFIXES = (
    'teacher.backbone.',  # DINO, DINOv2
    'teacher.',
    'model.backbone.model.',  # BYOL of TorchGeo
    'encoder_q.',  # MoCo v1 and v2
    'base_encoder.',  # MoCo v3
    'backbone.vit.',  # MAE of TorchGeo
    'backbone.',  # MoCo and SimCLR of TorchGeo, lightly
)


#: Names under which wrappers keep what they are around, one within another too.
WRAPPERS = ('_orig_mod', '_forward_module', '_fsdp_wrapped_module')

#: Networks of a checkpoint of ours: what is called ``module`` in one is a wrapper's.
NETWORKS = ('student', 'teacher', 'backbone')


class BackboneState(dict[str, Tensor]):
    """Tensors of a backbone by timm's names, which know the pixels it was trained on.

    Attributes:
        pixels: The pixels. None: unknown.
        model: timm's name of the model. None: unknown.
        stem: Name of the first convolution. None: as of timm's model.
    """

    pixels: Pixels | None = None
    model: str | None = None
    stem: str | None = None

    @property
    def children(self) -> set[str]:
        """Names of the modules that the backbone consists of."""
        return {name.partition('.')[0] for name in self}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the tensors alone, so that safe readers take the file."""
        return OrderedDict, (), None, None, iter(self.items())


def get_state_dict(weights: WeightsEnum | str) -> BackboneState:
    """Get the tensors of a weight of TorchGeo, or of a file.

    Args:
        weights: A weight enum of TorchGeo, its name, or a file, see
            :func:`read_backbone`.

    Returns:
        The backbone's state dict.

    Raises:
        ValueError: If there is no such weight or file.
    """
    from torchgeo.models import get_weight  # it imports us, see registration.py

    if isinstance(weights, str):
        if os.path.exists(weights):
            return read_backbone(weights)
        try:
            weights = get_weight(weights)
        except ValueError as error:
            raise ValueError(
                f"weights='{weights}' is neither a file nor a weight of TorchGeo: "
                f'{error}'
            ) from error
    state: StateDict = weights.get_state_dict(
        progress=True, check_hash=True, weights_only=True
    )
    return state if isinstance(state, BackboneState) else BackboneState(state)


def read_start(
    weights: WeightsEnum | str,
) -> tuple[BackboneState | None, StateDict | None]:
    """Read where a pre-training starts from, once.

    Args:
        weights: A weight enum of TorchGeo, its name, or a file.

    Returns:
        The backbone, or a full published state with heads, queue and centre by the
        published names; the other is None.

    Raises:
        ValueError: If there is no such weight or file, or it is unsafe.
    """
    if not isinstance(weights, str) or not os.path.isfile(weights):
        return get_state_dict(weights), None
    content = read_weights(weights)
    if is_published(content):
        return None, unwrap_state(content, f"'{weights}'")
    return extract_backbone(content, weights, metadata=read_metadata(weights)), None


def drop_wrappers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Name tensors as if no wrapper had been around the model or a part of it.

    Args:
        state: Tensors by name, of a model that was compiled (``_orig_mod.``) or trained
            on several devices (``module.``).

    Returns:
        The same tensors by the names that they have without.
    """
    return {_unwrapped(name): value for name, value in state.items()}


def _unwrapped(name: str) -> str:
    """Leave the wrappers out of the name of a tensor."""
    kept: list[str] = []
    for part in name.split('.'):
        outer = part == 'module' and (not kept or kept[-1] in NETWORKS)
        if part not in WRAPPERS and not outer:
            kept.append(part)
    return '.'.join(kept)


def is_ours(checkpoint: Any) -> bool:
    """Tell a Lightning checkpoint of a task of ours from one of TorchGeo's.

    Args:
        checkpoint: What a file holds.

    Returns:
        Whether it has a student.
    """
    state = checkpoint.get('state_dict') if isinstance(checkpoint, Mapping) else None
    return isinstance(state, Mapping) and any(
        name.startswith('student.backbone.') for name in drop_wrappers(state)
    )


def is_published(content: Any) -> bool:
    """Tell a full published state from other files.

    Args:
        content: What a file holds.

    Returns:
        Whether it has the authors' names of student and heads.
    """
    state = content.get('model', content) if isinstance(content, Mapping) else {}
    return isinstance(state, Mapping) and any(
        name.startswith(_OFFICIAL_PREFIXES['student']) for name in state
    )


def read_backbone(
    path: str | os.PathLike[str],
    *,
    network: Network = 'student',
    weights_only: bool = True,
) -> BackboneState:
    """Read the tensors of a backbone from a file.

    Args:
        path: A checkpoint of our task, a published file (backbone or full), a file of
            :func:`~torchgeo_cmid.models.export_backbone`, or a plain state dict by
            timm's names.
        network: Which network of a checkpoint or full state.
        weights_only: See :func:`~torchgeo_cmid.models.reading.read_weights`.

    Returns:
        The tensors by timm's names.

    Raises:
        ValueError: If the file holds no backbone.
    """
    content = read_weights(path, weights_only)
    return extract_backbone(content, str(path), network, read_metadata(path))


def extract_backbone(
    checkpoint: Any,
    source: str,
    network: Network = 'student',
    metadata: Mapping[str, str] | None = None,
) -> BackboneState:
    """Find the tensors of a backbone in what a file holds.

    Args:
        checkpoint: What the file holds.
        source: What to call it in an error.
        network: Which network of a checkpoint or full state.
        metadata: Metadata of the file, if it is one of safetensors.

    Returns:
        The tensors by timm's names, and as far as known the pixels.

    Raises:
        ValueError: If there are none.
    """
    pixels = find_pixels(checkpoint, metadata or {})
    if is_published(checkpoint):
        pixels = PUBLISHED
    model = json.loads((metadata or {}).get('model', 'null'))
    if isinstance(checkpoint, Mapping) and 'state_dict' in checkpoint:
        named = drop_wrappers(checkpoint['state_dict'])
        if 'hyper_parameters' in checkpoint and not (
            is_ours(checkpoint) or any(n.startswith(FOREIGN_PREFIXES) for n in named)
        ):
            raise ValueError(
                f"'{source}' is no checkpoint of CMID, nor of another pre-training: it "
                f'has no student, and nothing under {", ".join(FOREIGN_PREFIXES)}'
            )
        model = checkpoint.get('hyper_parameters', {}).get('model')
        checkpoint = checkpoint['state_dict']
    elif isinstance(checkpoint, Mapping) and isinstance(
        checkpoint.get('teacher'), Mapping
    ):  # DINO keeps each network apart
        checkpoint = {
            f'teacher.{name}': tensor
            for name, tensor in drop_wrappers(checkpoint['teacher']).items()
        }
    state = drop_wrappers(unwrap_state(checkpoint, f"'{source}'"))
    own = (f'{network}.backbone.', _OFFICIAL_PREFIXES[network])
    for prefix in (*own, *FOREIGN_PREFIXES):
        if any(name.startswith(prefix) for name in state):
            others = [name for name in state if not name.startswith(prefix)]
            state = {
                name.removeprefix(prefix): tensor
                for name, tensor in state.items()
                if name.startswith(prefix)
            }
            if prefix not in own:
                from lightning.pytorch.utilities import rank_zero_info  # when used

                rank_zero_info(
                    f"'{source}': the {len(state)} tensors under '{prefix}' are taken, "
                    f'{_in_short(others)} are left out'
                )
            break
    architecture = find_architecture(state)
    if architecture is not None and architecture.stem not in state:
        state = convert_official_backbone(state)  # by the names of the authors
        model = architecture.timm_name
    backbone = BackboneState(state)
    backbone.pixels, backbone.model = pixels, model
    return backbone


def _in_short(names: list[str]) -> str:
    """Say how many tensors there are, and of which modules."""
    modules = Counter(name.partition('.')[0] for name in names)
    listed = ', '.join(f'{name} ({number})' for name, number in modules.items())
    return f'{len(names)} others' + (f', of {listed},' if listed else '')


def load_strictly(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    two_dates: bool = False,
    excused: tuple[str, ...] = (),
) -> list[str]:
    """Load a state dict, with every tensor accounted for.

    A classifier is left out, or left as it is, where only one side has one, the stem is
    adapted to the model's bands, see :func:`~torchgeo_cmid.models.bands.adapt_stem`,
    and of a Swin's windows those offsets are taken that fit into smaller ones.

    Args:
        model: A timm model.
        state: Its tensors by name.
        source: What to call the state in an error.
        two_dates: Whether twice as many bands are two dates of one place.
        excused: Prefixes of tensors of *state* that the model may lack.

    Returns:
        The names of the model's tensors that were not loaded: of its classifier.

    Raises:
        ValueError: If a tensor is missing, unexpected or of another shape; all are
            named, and the model is left as it was.
    """
    expected, given = model.state_dict(), [*state]
    config: Any = getattr(model, 'pretrained_cfg', None) or {}
    classifier = _prefixes(config.get('classifier'))
    state = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith((*classifier, *excused))
        or (name in expected and expected[name].shape == tensor.shape)
    }
    for prefix in _prefixes(config.get('first_conv')):
        stem = f'{prefix}weight'
        if stem in state and stem in expected:
            channels = expected[stem].shape[1]
            state[stem] = adapt_stem(state[stem], channels, f"'{source}'", two_dates)

    state |= {
        name: _crop_offsets(state[name], tensor)
        for name, tensor in expected.items()
        if name in state and name.endswith('.relative_position_bias_table')
    }

    head = [n for n in expected if n.startswith(classifier) and n not in state]
    problems = [f'missing: {n}' for n in expected if n not in state and n not in head]
    problems += [f'unexpected: {name}' for name in state if name not in expected]
    problems += [
        f'shape {tuple(state[name].shape)} does not fit {tuple(tensor.shape)}: {name}'
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if 2 * len(state.keys() & expected.keys()) < len(expected):
        raise ValueError(
            f"'{source}' does not fit this backbone: most of its {len(given)} tensors "
            f'({", ".join(given[:3])}, ...) are not even named as those of the timm '
            f'model ({", ".join([*expected][:3])}, ...)'
        )
    if problems:
        raise ValueError(
            f"'{source}' does not fit this backbone:\n  " + '\n  '.join(problems)
        )
    nn.Module.load_state_dict(model, state, strict=False)  # encoders have their own
    return head


def _crop_offsets(table: Tensor, expected: Tensor) -> Tensor:
    """Take the biases of offsets within a smaller square window from those of a Swin.

    timm makes windows smaller where the map of features is.

    Args:
        table: Biases by offset, ((2 w - 1)^2, heads) for windows of w x w cells.
        expected: Those of the model.

    Returns:
        Those for the model's windows; *table* itself if they are no smaller squares.
    """
    side, smaller = math.isqrt(len(table)), math.isqrt(len(expected))
    squares = side**2 == len(table) and smaller**2 == len(expected)
    if smaller >= side or not squares or table.shape[1:] != expected.shape[1:]:
        return table
    first = (side - smaller) // 2
    inner = table.reshape(side, side, -1)[first:, first:][:smaller, :smaller]
    return inner.flatten(0, 1)


def _prefixes(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Turn names of modules into prefixes of their tensors."""
    names = (names,) if isinstance(names, str) else names or ()
    return tuple(f'{name}.' for name in names)
