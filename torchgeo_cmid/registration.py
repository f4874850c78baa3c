# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Registers torchgeo_cmid with TorchGeo; nothing else touches another package's tables.

TorchGeo's command line finds a task or a data module by its class name among the
subclasses of ``BaseTask`` and ``BaseDataModule`` that have been imported, so there it is
enough to import ours. Each is imported after TorchGeo's module of the same name has run:
at once where that has happened, else by the hook of ``torchgeo_cmid_autoload``.
"""

import importlib
import sys

from torchgeo_cmid_autoload import FINDER, HOSTS, install


def register(host: str) -> None:
    """Register what belongs to one module of TorchGeo; again changes nothing.

    Args:
        host: Full name of the module, one of ``HOSTS``, which must have run.
    """
    importlib.import_module(host.replace('torchgeo', 'torchgeo_cmid'))


def register_all() -> None:
    """Register everything, now or as soon as the module it belongs to has run."""
    install()
    for host in HOSTS:
        if host in sys.modules and host not in FINDER.running:
            register(host)
