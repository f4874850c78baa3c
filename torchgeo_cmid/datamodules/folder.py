# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What data modules of folders share: statistics, a place to go on from, one look."""

import os
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from threading import Thread
from typing import Any

import kornia.augmentation as K
import torch
from torchgeo.datamodules import BaseDataModule

from ..rasters.raster import close_rasters
from .loader import ResumableDataLoader
from .statistics import Normalization

#: Seconds after which processes that wait for the first are told to go on waiting.
WAIT = 60


class FolderDataModule(BaseDataModule):
    """A data module whose first process looks at the files, for all.

    Attributes:
        given: Mean and standard deviation that were given. None: they are estimated.
        normalization: Statistics that batches are normalised by. None: not yet known.
        seed: What patches follow from. None: not yet known.
        dates: Number of dates in an image.
    """

    given: tuple[list[float], list[float]] | None
    normalization: Normalization | None
    seed: int | None
    dates: int = 1
    train_sampler: Any
    _place: dict[str, int] | None
    _train_loader: ResumableDataLoader | None

    @property
    @abstractmethod
    def _bands(self) -> list[int | str]:
        """Bands of an image of one date, known after the set-up."""

    @abstractmethod
    def _estimate(self) -> Normalization:
        """Estimate the statistics."""

    def state_dict(self) -> dict[str, Any]:
        """Put the seed, the place in the epoch and the statistics into a checkpoint.

        Returns:
            Plain values.
        """
        state: dict[str, Any] = {'seed': self.seed}
        if self._train_loader is not None:
            state['place'] = self._train_loader.state_dict()
        if self.normalization is not None:
            state['normalization'] = asdict(self.normalization)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the seed, the place in the epoch and the statistics of a checkpoint.

        Lightning restores the place of a loader only where that has not been made yet,
        and the schedules need its length before.

        Args:
            state_dict: What :meth:`state_dict` gave.

        Raises:
            ValueError: If it was made with other bands.
        """
        self.seed = self.train_sampler.seed = state_dict['seed']
        self._place = state_dict.get('place')
        if self.given is None and 'normalization' in state_dict:
            normalization = Normalization(**state_dict['normalization'])
            if list(normalization.bands) != self._bands:
                raise ValueError(
                    f'the checkpoint was made with bands={list(normalization.bands)}, '
                    f'but the data has {self._bands}: set bands to those'
                )
            self._normalize(normalization)

    def _find_normalization(self) -> None:
        """Estimate the statistics if they are not known, and keep them by the run."""
        if self.normalization is None:
            self._normalize(self._from_first(self._estimate))
        assert self.normalization is not None
        if self.trainer:
            folder = self.trainer.log_dir  # asked for by every process
            if folder is not None and self.trainer.is_global_zero:
                self.normalization.save(os.path.join(folder, 'normalization.json'))

    def _normalize(self, normalization: Normalization) -> None:
        """Normalise batches with these statistics from now on."""
        self.normalization = normalization
        self.mean = torch.tensor(normalization.mean)
        self.std = torch.tensor(normalization.std)
        mean, std = self.mean.repeat(self.dates), self.std.repeat(self.dates)
        self.aug = K.AugmentationSequential(
            K.Normalize(mean=mean, std=std), data_keys=None, keepdim=True
        )

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
