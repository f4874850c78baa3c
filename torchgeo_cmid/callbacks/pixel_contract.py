# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A backbone in a run of a TorchGeo task gets the pixels that it was trained on."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from ..datamodules.applied import Applied, UnknownPixelsError, read_applied
from ..models.loading import BackboneState, read_backbone
from ..models.normalization import (
    PUBLISHED,
    InputNormalization,
    InputTransform,
    Pixels,
    attach,
    find_normalizations,
    from_standardised,
    from_unit,
    leave_images,
)
from ..models.published import PublishedWeights

#: Where a checkpoint keeps what was decided.
KEY = 'torchgeo_cmid_pixels'

#: Ways out of an error, for the command line and for Python.
REQUIRED = (
    'add the callback torchgeo_cmid.callbacks.PixelContract with what is true of the '
    'images: unit (255 for 8-bit images, 10000 for reflectance times 10,000) of raw '
    'numbers, with mean and std if they have been standardised; or normalize: false '
    'for images that are as the weights want them'
)


class PixelContract(Callback):
    """Brings the images of a run to the pixels that the backbone was trained on.

    Every TorchGeo task has this callback, and it does nothing unless the task started
    from weights that know their pixels: published ones, a checkpoint of CMID, or an
    exported file. What the data module has done to the images is read from its
    augmentations; if its unit is the backbone's it is undone, and the mean and standard
    deviation of the weights take its place, otherwise it stays. That is decided once,
    before the first batch, said in one line, kept in checkpoints, and obeyed when these
    are loaded.
    """

    def __init__(
        self,
        normalize: bool | None = None,
        unit: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Initialize a new PixelContract instance.

        Args:
            normalize: False: images are taken as they are. True: they are raw numbers
                of *unit* (of values in 0..1 if there is none) and are normalised. None:
                what the data module does decides.
            unit: The raw number that stands for 1, such as 255. None: as the data
                module tells.
            mean: Mean that has been subtracted from the raw numbers, of all bands or of
                each. None: as the data module tells.
            std: Standard deviation by which was divided, together with *mean*.

        Raises:
            ValueError: If only one of *mean* and *std* is given, or *unit* is not
                positive.
        """
        if (mean is None) != (std is None):
            raise ValueError('mean and std go together: give both or neither')
        if unit is not None and not unit > 0:
            raise ValueError(f'unit={unit} must be positive')
        self.normalize = normalize
        self.unit = unit
        self.mean = mean
        self.std = std
        self._done = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A run begins: what is done to images is settled before its first batch.

        Args:
            trainer: The trainer.
            pl_module: The task.
            stage: Either 'fit', 'validate', 'test', or 'predict'.
        """
        self._done = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle it before the sanity check.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        trainer.fit_loop.setup_data()  # ours estimates its statistics when it is asked
        self._settle(trainer, pl_module, 'fit')

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle it where nothing is trained.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._settle(trainer, pl_module, 'validate')

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle it.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._settle(trainer, pl_module, 'test')

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle it.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._settle(trainer, pl_module, 'predict')

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what was decided.

        Args:
            trainer: The trainer.
            pl_module: The task.
            checkpoint: The checkpoint.
        """
        found = find_normalizations(pl_module)
        if found:
            checkpoint[KEY] = {
                name: asdict(hook.transform) | {'pixels': hook.pixels.to_state()}
                for name, hook in found.items()
            }

    def _settle(self, trainer: Trainer, task: LightningModule, stage: str) -> None:
        """Decide what is done to images, unless that has been done."""
        if self._done:
            return
        self._done = True
        legacy = getattr(task, '_fine_tuned_before', False)
        found = find_normalizations(task)
        if not found and not legacy:
            found = _attach_by_weights(task)
        for name, hook in found.items():
            if hook.normalize is not None:  # an argument of the model has decided
                reason = hook.transform.reason
            elif hook.kept and self.normalize is None:
                reason = f'as when it was trained: {hook.transform.reason}'
            else:
                if legacy:
                    hook.take_pixels(PUBLISHED)
                transform = self._decide(trainer, hook, stage)
                hook.decide(transform, keep=stage == 'fit')
                reason = hook.transform.reason
                if legacy:
                    reason += (
                        '; the checkpoint is from before version 0.2 and does not say '
                        'what was done: PixelContract(normalize=True or False) does'
                    )
            rank_zero_info(f'pixels of {hook.name} ({name}): {reason}')

    def read(self, trainer: Trainer, stage: str) -> Applied:
        """Find out what has been done to the images of a run.

        Args:
            trainer: The trainer.
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Returns:
            What arguments say, else what the data module does.

        Raises:
            UnknownPixelsError: If neither tells.
        """
        if self.mean is not None and self.std is not None:
            given = tuple(self.mean), tuple(self.std)
            return Applied(*given, self.unit, type(self).__name__)
        return read_applied(getattr(trainer, 'datamodule', None), stage, self.unit)

    def _decide(
        self, trainer: Trainer, hook: InputNormalization, stage: str
    ) -> InputTransform:
        """Find out what has been done to the images, and what is left to do."""
        if self.normalize is False:
            return leave_images(hook.in_channels, 'taken as they are (normalize=False)')
        if self.normalize:
            unit = None if hook.pixels.unit is None else self.unit or 1.0
            return from_unit(hook.pixels, hook.in_channels, unit)
        try:
            applied = self.read(trainer, stage)
        except UnknownPixelsError as error:
            raise ValueError(
                f'{hook.name} has to know what has been done to the images, but '
                f'{error}: {REQUIRED}'
            ) from error
        return from_standardised(hook.pixels, hook.in_channels, applied)


def see_pixels(
    trainer: Trainer, stage: str, in_channels: int, hook: InputNormalization | None
) -> tuple[Pixels | None, str]:
    """Find out which pixels a network sees in a run.

    Args:
        trainer: The trainer, which has a :class:`PixelContract`.
        stage: Either 'fit', 'validate', 'test', or 'predict'.
        in_channels: Number of bands of the network.
        hook: What is in front of it, decided on, if anything is.

    Returns:
        The pixels, None if what has been done to the images is not known, and in words.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    contract = next(each for each in callbacks if isinstance(each, PixelContract))
    pixels = None
    try:
        applied = contract.read(trainer, stage)
        pixels = Pixels.of_images(applied, in_channels)
        reason = f'as {applied.source} gives them'
    except UnknownPixelsError as error:
        reason = f'not known, {error}'
    if hook is not None and hook.transform.fulfils:
        unit = hook.pixels.unit or (None if pixels is None else pixels.unit)
        return replace(hook.pixels, unit=unit), 'as the backbone knows them'
    if pixels is not None:
        unit_text = 'unknown' if pixels.unit is None else f'{pixels.unit:g}'
        reason += f', (raw - mean) / std, unit {unit_text}'
    return pixels, reason


def restore_decisions(task: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Do to images what was done to them when a checkpoint was made.

    Args:
        task: The task that the checkpoint is loaded into.
        checkpoint: The checkpoint.
    """
    saved = checkpoint.get(KEY)
    if saved is None:
        task._fine_tuned_before = True  # type: ignore[assignment]
        return
    hooks = find_normalizations(task)
    for name, content in saved.items():
        transform = InputTransform(
            tuple(content['scale']), tuple(content['offset']), str(content['reason'])
        )
        hook = hooks.get(name)
        if hook is None:
            pixels = Pixels.from_state(content['pixels'])
            hook = InputNormalization(type(task).__name__, len(transform.scale), pixels)
            attach(task, name, hook)
        hook.decide(transform, keep=True)


def _attach_by_weights(task: LightningModule) -> dict[str, InputNormalization]:
    """Put a normalisation in front of a backbone of timm's or smp's own name."""
    state = _find_state(getattr(task, 'weights', None))
    if state is None or state.pixels is None:
        return {}
    stem = _find_stem(state)
    attached = {}
    for backbone in _find_backbones(task, stem, state.children):
        filters = task.get_parameter(f'{backbone}.{stem}.weight')
        name = f'{backbone}.{stem.removesuffix(".proj")}'
        attached[name] = InputNormalization(
            state.model or 'the backbone', filters.shape[1], state.pixels
        )
        attach(task, name, attached[name])
    if not attached:
        raise ValueError(
            f'{type(task).__name__} has no module {stem} in front of which the images '
            'could be normalised: use a cmid_* model, or PixelContract with '
            'normalize=False to take them as they are'
        )
    return attached


def _find_backbones(task: nn.Module, stem: str, children: set[str]) -> list[str]:
    """Name the modules that hold a stem and most of what a backbone consists of.

    Blocks of a ResNet and of decoders have a convolution of the stem's name, too.
    """
    found = []
    for name, _ in task.named_modules():
        if name.endswith(f'.{stem}'):
            home = name.removesuffix(f'.{stem}')
            own = {child for child, _ in task.get_submodule(home).named_children()}
            if 2 * len(own & children) > len(children):
                found.append(home)
    return found


def _find_state(weights: Any) -> BackboneState | None:
    """Find what weights know of their pixels, if they are ours."""
    from torchgeo.models import get_weight  # it imports us, see registration.py

    if isinstance(weights, str) and os.path.isfile(weights):
        return _read_ours(weights)
    if isinstance(weights, str):
        weights = get_weight(weights)
    if isinstance(weights, PublishedWeights):
        state = BackboneState(
            dict.fromkeys(weights.architecture.stages, torch.empty(0))
        )
        state.pixels, state.model = PUBLISHED, weights.architecture.timm_name
        return state
    return None


def _read_ours(path: str) -> BackboneState | None:
    """Read a file of ours; one of TorchGeo's tells nothing of pixels."""
    try:
        return read_backbone(path)
    except ValueError:
        return None


def _find_stem(state: BackboneState) -> str:
    """Name the first convolution of a backbone."""
    config = None
    if state.model is not None and timm.is_model(state.model):
        config = timm.get_pretrained_cfg(state.model)
    stem = getattr(config, 'first_conv', None)
    return stem if isinstance(stem, str) else 'conv1'
