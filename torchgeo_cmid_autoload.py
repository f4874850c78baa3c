# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The import hook that registers torchgeo_cmid when TorchGeo's modules are imported.

``torchgeo_cmid.pth`` runs :func:`install` whenever Python starts, so this module lies
beside the package, not in it, and imports nothing that Python has not loaded already.
"""

import sys

TYPE_CHECKING = False  # `typing` itself would cost every Python start 3 ms
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# The modules of TorchGeo that, once they have run, get something from us.
HOSTS = ('torchgeo.datamodules', 'torchgeo.tasks')


class HostFinder:
    """Finds the host modules as usual and has each register us after it has run."""

    def __init__(self) -> None:
        """Initialize a new HostFinder instance."""
        self.running: set[str] = set()  # hosts that import each other, half initialised

    def find_spec(
        self,
        name: str,
        path: 'Sequence[str] | None' = None,
        target: 'ModuleType | None' = None,
    ) -> 'ModuleSpec | None':
        """Let the other finders find a host module, and wrap its execution.

        Args:
            name: Full name of the module that is being imported.
            path: Where its package looks for submodules.
            target: The module that is being reloaded, if any.

        Returns:
            The spec of a host module, None for every other module.
        """
        if name not in HOSTS:
            return None
        for finder in sys.meta_path:
            if finder is not self:
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    self._register_after_execution(spec)
                    return spec
        return None

    def _register_after_execution(self, spec: 'ModuleSpec') -> None:
        """Wrap the method that runs a host module, on its own loader.

        Args:
            spec: Spec of a host module.
        """
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_register(module: 'ModuleType') -> None:
            self.running.add(spec.name)
            try:
                execute(module)
            finally:
                self.running.discard(spec.name)
            try:
                from torchgeo_cmid.registration import register

                register(spec.name)
            except Exception as error:
                error.add_note(
                    f'torchgeo_cmid could not be registered with {spec.name}. '
                    'TORCHGEO_CMID_AUTOLOAD=0 in the environment switches that off.'
                )
                raise

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]


FINDER = HostFinder()


def install() -> None:
    """Put the finder before all others; a second call changes nothing."""
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)
