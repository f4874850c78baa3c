# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Which arguments a run has that goes on: its checkpoint's, and what is typed."""

import inspect
from collections.abc import Mapping
from typing import Any

from .cmid import CMID

#: What the networks are made of, and what the state of the optimizer holds.
FIXED = {
    'model',
    'in_channels',
    'size',
    'global_branch',
    'local_branch',
    'reconstruction_branch',
    'queue_size',
    'projection_dim',
    'hidden_dim',
    'num_prototypes',
    'bottleneck_dim',
    'local_head_norm',
    'optimizer',
    'weight_decay',
}

#: What Lightning writes beside the arguments.
_NOTES = {'_class_path', '_instantiator'}


def merge_arguments(
    checkpoint: Mapping[str, Any], typed: Mapping[str, Any], path: str
) -> dict[str, Any]:
    """Take the arguments of a checkpoint, and in their place those that are typed.

    A checkpoint is data: no class that it names is imported, and nothing but plain
    values of arguments that CMID has is taken from it.

    Args:
        checkpoint: What the file holds.
        typed: Arguments on the command line or in a configuration, by name.
        path: The file.

    Returns:
        Arguments of :class:`~torchgeo_cmid.tasks.CMID`.

    Raises:
        ValueError: If the checkpoint holds something else, or cannot go on with what is
            typed; the argument is named.
    """
    known = set(inspect.signature(CMID.__init__).parameters) - {'self', *CMID.ignore}
    own = {
        name: value
        for name, value in checkpoint['hyper_parameters'].items()
        if name not in _NOTES
    }
    for name, value in own.items():
        if name not in known or not _is_plain(value):
            raise ValueError(
                f"'{path}': its argument {name}={value!r:.80} is none of CMID, or no "
                'plain value, and is not used. Take the backbone alone, in a new run, '
                f'by --model.weights {path}'
            )
    for name in sorted(FIXED & typed.keys() & own.keys()):
        if _as_list(typed[name]) != _as_list(own[name]):
            raise ValueError(
                f"{name}={typed[name]} is typed, but '{path}' was made with "
                f'{name}={own[name]} and cannot go on with another: leave it out, or '
                f'begin a new run by --model.weights {path}'
            )
    return {**own, **typed}


def _is_plain(value: Any) -> bool:
    """Tell whether a value is a number, a text, or a list of such."""
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str)


def _as_list(value: Any) -> Any:
    """Compare tuples and lists alike."""
    return list(value) if isinstance(value, tuple) else value
