# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The import hook that registers torchgeo_cmid as soon as TorchGeo has been imported.

``torchgeo_cmid.pth``, which Python runs whenever it starts, puts a finder in place that
imports this module when a submodule of TorchGeo is looked for, and hands over to it.
That is one line and no import: compiling even an empty module costs a start 2 ms.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from .registration import HOSTS, register


class HostFinder:
    """Finds the host modules as Python does, but each registers us after it has run.

    Not before: hosts import one another, and half initialised they lack most names.
    """

    def __init__(self) -> None:
        """Initialize a new HostFinder instance."""
        self.searched: set[str] = set()  # hosts that the other finders are looking for
        self.running: set[str] = set()  # hosts that are being executed

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Find a host module.

        Args:
            name: Full name of any module.
            path: Where its package looks for submodules.
            target: The module that is being reloaded, if any.

        Returns:
            The spec of a host, None for every other module.
        """
        if name not in HOSTS or name in self.searched:
            return None
        self.searched.add(name)
        try:
            found = (f.find_spec(name, path, target) for f in sys.meta_path)
            spec = next(filter(None, found), None)
        finally:
            self.searched.remove(name)
        if spec is not None:
            self._register_after_execution(spec)
        return spec

    def _register_after_execution(self, spec: ModuleSpec) -> None:
        """Wrap the method that executes a host.

        Args:
            spec: The host's spec; its loader loads nothing else.
        """
        assert spec.loader is not None, f'{spec.name} has no code'
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            self.running.add(spec.name)
            try:
                execute(module)
            finally:
                self.running.remove(spec.name)
            try:
                register(spec.name)
            except Exception as error:
                error.add_note(
                    f'This came up when torchgeo_cmid registered with {spec.name}; '
                    'TORCHGEO_CMID_AUTOLOAD=0 in the environment switches that off.'
                )
                raise

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]


FINDER = HostFinder()


def install() -> None:
    """Register with every host that has run, and with the others as soon as they have.

    A second call changes nothing.
    """
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)
    for host in HOSTS:
        if host in sys.modules and host not in FINDER.running:
            register(host)
