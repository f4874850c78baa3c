# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Registers torchgeo_cmid with TorchGeo; nothing else touches another package's tables.

TorchGeo's command line finds a task or a data module by its class name, among the
subclasses of ``BaseTask`` and ``BaseDataModule`` that have been imported: there it is
enough to import ours.
"""

import importlib

# The modules of TorchGeo that get something from us -> the module that brings it.
HOSTS = {
    'torchgeo.datamodules': 'torchgeo_cmid.datamodules',
    'torchgeo.tasks': 'torchgeo_cmid.tasks',
}


def register(host: str) -> None:
    """Register what belongs to one module of TorchGeo; again changes nothing.

    Args:
        host: Full name of the module, one of ``HOSTS``, which must have run to its end.
    """
    importlib.import_module(HOSTS[host])
