# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Where modules and names lay in version 0.1, and where they lie now.

Checkpoints, configs and code that were written with the old paths stay valid: an old
module *is* the new one, so that its classes are the same classes.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old module -> new one, both below this package
MODULES = {
    'datamodules.normalization': 'datamodules.statistics',
    'datasets.cache': 'rasters.cache',
    'datasets.catalog': 'rasters.catalog',
    'datasets.coverage': 'rasters.coverage',
    'datasets.dates': 'rasters.dates',
    'datasets.files': 'rasters.files',
    'datasets.patch': 'rasters.patch',
    'datasets.raster': 'rasters.raster',
    'datasets.region': 'rasters.region',
    'datasets.scene': 'rasters.scene',
    'datasets.sensor': 'rasters.sensor',
    'datasets.source': 'rasters.source',
    'models.backbone': 'networks.backbone',
    'models.files': 'models.reading',
    'models.heads': 'networks.heads',
    'models.networks': 'networks.student_teacher',
    'models.norms': 'runs.norms',
    'models.recompute': 'networks.recompute',
    'models.weights': 'models.loading',
    'samplers.dates': 'samplers.pairs',
    'samplers.scenes': 'samplers.patches',
    'tasks.distillation': 'tasks.pretraining',
    'tasks.finite': 'runs.finite',
    'tasks.interruption': 'runs.interruption',
    'tasks.processes': 'runs.processes',
    'tasks.randomness': 'runs.randomness',
    'tasks.views': 'transforms.masked_views',
}

# Module -> names that it gave -> the module that gives them now
NAMES = {
    'models': dict.fromkeys(
        ('MLP', 'PrototypeHead', 'SpatialBackbone', 'Student', 'Teacher'), 'networks'
    )
}


class _OldPath(Loader):
    """Loads the new module in place of an old one."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make a module, which is replaced below."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the new module where the old one is looked for."""
        assert module.__spec__ is not None
        old = module.__spec__.name.removeprefix(f'{__package__}.')
        new = importlib.import_module(f'{__package__}.{MODULES[old]}')
        sys.modules[module.__spec__.name] = new


class _OldPaths(MetaPathFinder):
    """Finds modules by their old paths, after everything else has been searched."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Find an old path.

        Args:
            name: Full name of any module.
            path: Where its package looks for submodules.
            target: The module that is being reloaded, if any.

        Returns:
            The spec of an old path, None for every other module.
        """
        if name.removeprefix(f'{__package__}.') not in MODULES:
            return None
        return ModuleSpec(name, _OldPath())


_FINDER = _OldPaths()


def install() -> None:
    """Find old paths from now on; a second call changes nothing."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)


def find_name(module: str, name: str) -> Any:
    """Find a name in the module that gives it now.

    Args:
        module: Full name of the module that gave it.
        name: The name.

    Returns:
        What it stands for.

    Raises:
        AttributeError: If the module never gave such a name.
    """
    home = NAMES.get(module.removeprefix(f'{__package__}.'), {}).get(name)
    if home is None:
        raise AttributeError(f'module {module!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__package__}.{home}'), name)
