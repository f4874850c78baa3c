# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What data modules of folders share: the first process looks for all of them."""

from collections.abc import Callable
from threading import Thread
from typing import Any

from torchgeo.datamodules import BaseDataModule

from ..rasters.raster import close_rasters

#: Seconds after which processes that wait for the first are told to go on waiting.
WAIT = 60


class FolderDataModule(BaseDataModule):
    """A data module whose first process looks at the files, for all."""

    @property
    def _is_first(self) -> bool:
        """This is the first of all processes, or the only one."""
        return not self.trainer or self.trainer.is_global_zero

    def _from_first[T](self, make: Callable[[], T]) -> T:
        """Have the first process make something, and give every one what it made.

        It may take hours, and a message between processes minutes at most: so it is
        made in a thread, while the others are told to wait. An error is everybody's,
        for they would wait for ever.
        """
        if not self.trainer or self.trainer.world_size == 1:
            return make()
        made: list[T] = []
        errors: list[Exception] = []

        def work() -> None:
            try:
                made.append(make())
            except Exception as error:
                errors.append(error)
            finally:
                close_rasters()  # files are open for the thread that opened them

        thread = Thread(target=work if self._is_first else lambda: None, daemon=True)
        thread.start()
        thread.join(WAIT)
        while self._broadcast(thread.is_alive()):
            thread.join(WAIT)
        error = self._broadcast(str(errors[0]) if errors else None)
        if errors:
            raise errors[0]
        if error is not None:
            raise RuntimeError(f'the first process failed: {error}')
        result: T = self._broadcast(made[0] if made else None)
        return result

    def _broadcast(self, value: Any) -> Any:
        """Give every process the first one's value."""
        return self.trainer.strategy.broadcast(value) if self.trainer else value
