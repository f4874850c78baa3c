# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Reads a file of weights safely: no code that it pickles is ever run."""

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

# What the parsers of pickles and safetensors raise on bytes that are neither
_PARSER_ERRORS = (
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    struct.error,
)


def read_weights(path: str | os.PathLike[str], weights_only: bool = True) -> Any:
    """Read a file that holds tensors.

    Args:
        path: The file: of :func:`torch.save`, or with the suffix ``.safetensors``.
        weights_only: Refuse a file that pickles anything but tensors and plain values.
            The full published files do pickle foreign classes: with False these are
            replaced by empty stand-ins, no code of theirs is imported or run. (In
            torch's zip files only: what is older is always read safely.)

    Returns:
        What the file holds, on the CPU.

    Raises:
        ValueError: If there is no such file, or it is a pipe, a folder, a web page,
            truncated or something else, or if it is unsafe while *weights_only*.
    """
    if not Path(path).is_file():
        kind = 'no such file' if not os.path.lexists(path) else 'no regular file'
        raise ValueError(f"'{path}': {kind}; give a file of weights")
    with Path(path).open('rb') as file:
        start = file.read(512)
    in_zip = start.startswith(b'PK\x03\x04')  # as torch looks
    if start.lstrip().startswith(b'<'):
        raise ValueError(
            f"'{path}' is a web page, no weights: the link it was fetched from has "
            'died. Remove it, and fetch the file from another place'
        )
    try:
        if Path(path).suffix == '.safetensors':
            return load_file(path)
        # of other files torch reads a part by the stock `pickle.load`, which runs it
        if weights_only or not in_zip:
            return torch.load(path, map_location='cpu', weights_only=True)
        _refuse_script(path)
        return torch.load(
            path, map_location='cpu', weights_only=False, pickle_module=_StandIns
        )
    except pickle.UnpicklingError as error:
        if in_zip and 'Unsupported' in str(error):
            raise ValueError(
                f"'{path}' pickles objects that are no tensors, as the full published "
                'files do. If you trust its source, read it once with '
                'weights_only=False, by CMID.load_official_checkpoint or by '
                'torchgeo_cmid.models.export_backbone: foreign classes are then '
                'replaced by empty stand-ins.'
            ) from error
        if 'Unsupported' in str(error):
            raise ValueError(
                f"'{path}' pickles objects that are no tensors, and its format can not "
                'be read without running them: get it as a file of torch.save since '
                'torch 1.6, or as safetensors'
            ) from error
        raise _no_checkpoint(path, error) from error
    except _PARSER_ERRORS as error:
        raise _no_checkpoint(path, error) from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the metadata of a safetensors file.

    Args:
        path: Any file of weights.

    Returns:
        Texts by name, none if it is of another format.

    Raises:
        ValueError: If the file is damaged.
    """
    if Path(path).suffix != '.safetensors':
        return {}
    try:
        with safe_open(path, 'pt') as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise _no_checkpoint(path, error) from error


def _refuse_script(path: str | os.PathLike[str]) -> None:
    """Refuse a TorchScript program, which torch would load as one."""
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith('constants.pkl') for name in archive.namelist()):
            raise ValueError(
                f"'{path}' is a TorchScript program, no weights: save its state_dict() "
                'with torch.save'
            )


def _no_checkpoint(path: str | os.PathLike[str], error: Exception) -> ValueError:
    """Say that a file can not be read."""
    return ValueError(
        f"'{path}' is no PyTorch checkpoint, or only a part of one: {error}"
    )


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
