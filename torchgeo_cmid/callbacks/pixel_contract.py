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
from ..models.loading import BackboneState, extract_backbone, is_ours
from ..models.normalization import (
    PUBLISHED,
    InputNormalization,
    InputTransform,
    Pixels,
    attach,
    check_unit,
    find_normalizations,
    from_standardised,
    from_unit,
    leave_images,
)
from ..models.published import PublishedWeights
from ..models.reading import read_metadata, read_weights

#: Where a checkpoint keeps what was decided.
KEY = 'torchgeo_cmid_pixels'

#: Ways out of an error, for the command line and for Python.
REQUIRED = (
    'add the callback torchgeo_cmid.callbacks.PixelContract with what is true of the '
    'images. Raw numbers: normalize=True and unit (255 for 8-bit images, 10000 for '
    'reflectance times 10,000). Standardised: mean, std and unit of the raw numbers. '
    'As the weights want them: normalize=False'
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
            ValueError: If only one of *mean* and *std* is given, or a value is out of
                its range.
        """
        if (mean is None) != (std is None):
            raise ValueError('mean and std go together: give both or neither')
        if mean is not None and std is not None:
            Pixels(tuple(mean), tuple(std))  # refuses what is no mean and std
            if min(std) < 0:
                raise ValueError(f'std={list(std)}: every value must be positive')
        check_unit(unit)
        if not isinstance(normalize, bool | None):
            raise ValueError(f'normalize={normalize!r} must be True, False or None')
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
        # a tuner takes all callbacks away from the trainer while it trains
        pl_module.pixel_contract = self  # type: ignore[assignment]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle it before the sanity check.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        trainer.fit_loop.setup_data()  # ours estimates its statistics when it is asked
        self.settle(trainer, pl_module, 'fit')

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle it where nothing is trained.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self.settle(trainer, pl_module, 'validate')

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle it.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self.settle(trainer, pl_module, 'test')

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle it.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self.settle(trainer, pl_module, 'predict')

    def settle(self, trainer: Trainer, task: LightningModule, stage: str) -> None:
        """Decide what is done to images, once in a run.

        Args:
            trainer: The trainer.
            task: The task.
            stage: Either 'fit', 'validate', 'test', or 'predict'.
        """
        if self._done:
            return
        self._done = True
        legacy = getattr(task, '_fine_tuned_before', False)
        found = find_normalizations(task)
        if not found and not legacy:
            found = _attach_by_weights(task)
        for name, hook in found.items():
            if legacy and not hook.kept:
                hook.take_pixels(PUBLISHED)
            if hook.normalize is None:  # else an argument of the model has decided
                reason, seen = self._decide(trainer, hook, stage)
                if stage == 'fit':
                    hook.keep(seen)
            else:
                reason = hook.transform.reason
            if legacy:
                reason += (
                    '; the checkpoint does not say what was done, as those of before '
                    'version 0.2: PixelContract(normalize=True or False) does'
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
    ) -> tuple[str, Pixels | None]:
        """Find out what has been done to the images, and do what is left.

        What the model was trained on, if it was, takes the place of what its weights
        were. Returned are the reason, and the pixels that it sees.
        """
        channels = hook.in_channels
        if self.normalize is False:
            reason = 'taken as they are (normalize=False)'
            hook.decide(leave_images(channels, reason))
            return reason, None
        if self.normalize:
            unit = None if hook.pixels.unit is None else self.unit or 1.0
            hook.decide(from_unit(hook.pixels, channels, unit))
            return hook.transform.reason, hook.pixels
        try:
            applied = self.read(trainer, stage)
        except UnknownPixelsError as error:
            if hook.kept:
                reason = f'as when it was trained: {hook.transform.reason} ({error})'
                return reason, hook.trained_on
            raise ValueError(
                f'{hook.name} has to know what has been done to the images, but '
                f'{error}: {REQUIRED}'
            ) from error
        if hook.kept and hook.trained_on is None:
            return f'as when it was trained: {hook.transform.reason}', None
        pixels = _goal(hook)
        transform = from_standardised(pixels, channels, applied)
        hook.decide(transform)
        seen = pixels if transform.fulfils else Pixels.of_images(applied, channels)
        return transform.reason, seen


def see_pixels(
    contract: PixelContract,
    trainer: Trainer,
    stage: str,
    in_channels: int,
    hook: InputNormalization | None,
) -> tuple[Pixels | None, str]:
    """Find out which pixels a network sees in a run.

    Args:
        contract: The callback of the run.
        trainer: The trainer.
        stage: Either 'fit', 'validate', 'test', or 'predict'.
        in_channels: Number of bands of the network.
        hook: What is in front of it, decided on, if anything is.

    Returns:
        The pixels, None if what has been done to the images is not known, and in words.
    """
    pixels = None
    try:
        applied = contract.read(trainer, stage)
        pixels = Pixels.of_images(applied, in_channels)
        reason = f'as {applied.source} gives them'
    except UnknownPixelsError as error:
        reason = f'not known, {error}'
    if hook is not None and hook.transform.fulfils:
        goal = _goal(hook)
        unit = goal.unit or (None if pixels is None else pixels.unit)
        return replace(goal, unit=unit), 'as the backbone knows them'
    if pixels is not None:
        unit_text = 'unknown' if pixels.unit is None else f'{pixels.unit:g}'
        reason += f', (raw - mean) / std, unit {unit_text}'
    return pixels, reason


def _goal(hook: InputNormalization) -> Pixels:
    """The pixels that a model was trained on last: its weights, or the model itself."""
    return (hook.trained_on if hook.kept else None) or hook.pixels


def save_decisions(task: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Put into a checkpoint what is done to images.

    Args:
        task: The task that is saved.
        checkpoint: The checkpoint.
    """
    if hasattr(task, 'student') or getattr(task, '_fine_tuned_before', False):
        return  # ours keep the pixels themselves
    checkpoint[KEY] = {
        name: asdict(hook.transform)
        | {
            'pixels': hook.pixels.to_state(),
            'trained_on': hook.trained_on and hook.trained_on.to_state(),
        }
        for name, hook in find_normalizations(task).items()
        if hook.kept
    }


def restore_decisions(task: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Do to images what was done to them when a checkpoint was made.

    Args:
        task: The task that the checkpoint is loaded into.
        checkpoint: The checkpoint.
    """
    if hasattr(task, 'student'):
        return
    saved = checkpoint.get(KEY)
    task._fine_tuned_before = saved is None  # type: ignore[assignment]
    hooks = find_normalizations(task)
    for name, content in (saved or {}).items():
        transform = InputTransform(
            tuple(content['scale']),
            tuple(content['offset']),
            str(content['reason']),
            bool(content['fulfils']),
        )
        pixels = Pixels.from_state(content['pixels'])
        hook = hooks.get(name)
        if hook is None:
            hook = InputNormalization(type(task).__name__, len(transform.scale), pixels)
            attach(task, name, hook)
        hook.take_pixels(pixels)
        hook.decide(transform)
        trained_on = content['trained_on']
        hook.keep(None if trained_on is None else Pixels.from_state(trained_on))


def find_fine_tuned(content: Mapping[str, Any]) -> BackboneState | None:
    """Find what a backbone knows of its pixels in a checkpoint of a fine-tuned task.

    Args:
        content: The checkpoint, of a task of TorchGeo.

    Returns:
        Its tensors by timm's names and the pixels that it was trained on last; None if
        the checkpoint does not tell.
    """
    for name, saved in content.get(KEY, {}).items():
        home, _, stem = name.rpartition('.')
        tensors = {
            key.removeprefix(f'{home}.'): value
            for key, value in content['state_dict'].items()
            if key.startswith(f'{home}.')
        }
        state = BackboneState(tensors)
        known = saved['trained_on'] or saved['pixels']
        state.pixels = Pixels.from_state(known)
        arguments = content.get('hyper_parameters', {})
        state.model = arguments.get('backbone') or arguments.get('model')
        state.stem = f'{stem}.proj' if f'{stem}.proj.weight' in tensors else stem
        return state
    return None


def _attach_by_weights(task: LightningModule) -> dict[str, InputNormalization]:
    """Put a normalisation in front of a backbone of timm's or smp's own name."""
    given = [getattr(task, name, None) for name in ('weights_backbone', 'weights')]
    state = _find_state(given[0] or given[1])
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
    """Read a file of ours, or of a task that was fine-tuned with pixels known."""
    content = read_weights(path)
    if isinstance(content, Mapping) and KEY in content and not is_ours(content):
        return find_fine_tuned(content)
    try:
        return extract_backbone(content, path, metadata=read_metadata(path))
    except ValueError:  # TorchGeo has layouts of its own
        return None


def _find_stem(state: BackboneState) -> str:
    """Name the first convolution of a backbone."""
    if state.stem is not None:
        return state.stem
    config = None
    if state.model is not None and timm.is_model(state.model):
        config = timm.get_pretrained_cfg(state.model)
    stem = getattr(config, 'first_conv', None)
    return stem if isinstance(stem, str) else 'conv1'
