# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""CMID pre-training for TorchGeo; importing it registers everything with TorchGeo.

The public names are imported when they are first used, so that the import hook, which
imports this package from within TorchGeo, loads no more than it needs.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from . import autoload, moved

if TYPE_CHECKING:
    from .datamodules import (
        ImageFolderDataModule,
        OlindaDataModule,
        RasterFolderDataModule,
    )
    from .tasks import CMID

__all__ = (
    'CMID',
    'ImageFolderDataModule',
    'OlindaDataModule',
    'RasterFolderDataModule',
)
__version__ = version(__name__)

_SUBMODULES = {
    'CMID': '.tasks',
    'OlindaDataModule': '.datamodules',
    'ImageFolderDataModule': '.datamodules',
    'RasterFolderDataModule': '.datamodules',
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    Args:
        name: The name that this module does not hold yet.

    Returns:
        What the name stands for.

    Raises:
        AttributeError: If it is no public name.
    """
    if name not in _SUBMODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_SUBMODULES[name], __name__), name)


def __dir__() -> list[str]:
    """Name the public names too that are not imported yet.

    Returns:
        All names, sorted.
    """
    return sorted({*globals(), *__all__})


moved.install()
autoload.install()
