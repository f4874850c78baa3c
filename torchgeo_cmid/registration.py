# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Registers torchgeo_cmid with TorchGeo; nothing else touches another package's tables.

TorchGeo's command line finds a task or a data module by its class name, among the
subclasses of ``BaseTask`` and ``BaseDataModule`` that have been imported: there it is
enough to import ours. Models and weights go into the tables of TorchGeo, timm and smp,
and functions that refuse them, or must know of pixels, are wrapped: five of TorchGeo,
one of kornia.
"""

import difflib
import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchgeo.tasks import BaseTask
    from torchvision.models._api import WeightsEnum


def register(host: str) -> None:
    """Register what belongs to one module of TorchGeo; again changes nothing.

    Args:
        host: Full name of the module, one of ``HOSTS``, which must have run to its end.
    """
    HOSTS[host]()


def _register_datamodules() -> None:
    """Let the command line find our data modules, and change detection augment."""
    from kornia.augmentation import AugmentationSequential

    from . import datamodules  # noqa: F401

    _wrap(_augment_video, AugmentationSequential, name='__call__')


def _register_models() -> None:
    """Put models and weights into the tables of TorchGeo, timm and smp."""
    import segmentation_models_pytorch as smp  # type: ignore[import-untyped]
    import timm
    from torchgeo.models import api

    from .models import published, transfer
    from .models.architectures import ARCHITECTURES

    for name in ARCHITECTURES:
        model, weights = transfer.MODELS[name], published.WEIGHTS[name]
        api._model[name] = model
        api._model_weights[model] = api._model_weights[name] = weights
        if not timm.is_model(name):
            timm.models.register_model(model)
        smp.encoders.encoders[name] = {
            'encoder': transfer.ENCODERS[name],
            'pretrained_settings': {},
            'params': {},
        }
    _wrap(_get_weight, api, sys.modules['torchgeo.models'])


def _register_tasks() -> None:
    """Let the command line find our tasks, and stock tasks load our weights."""
    from torchgeo.tasks import BaseTask, utils

    from . import tasks  # noqa: F401

    _wrap(_load_state_dict, utils)
    _wrap(_extract_backbone, utils)
    _wrap(_configure_callbacks, BaseTask)
    _wrap(_on_load_checkpoint, BaseTask)


# The modules of TorchGeo that get something from us -> what brings it.
HOSTS: dict[str, Callable[[], None]] = {
    'torchgeo.models': _register_models,
    'torchgeo.datamodules': _register_datamodules,
    'torchgeo.tasks': _register_tasks,
}


def _wrap(wrapper: Callable[..., Any], *modules: Any, name: str = '') -> None:
    """Wrap a function of other modules, once.

    Args:
        wrapper: Takes the function and then its arguments.
        *modules: Modules or a class, where the function is known.
        name: Name of the function. Empty: that of *wrapper* without the first _.
    """
    name = name or wrapper.__name__.removeprefix('_')
    original = getattr(modules[0], name)
    if hasattr(original, 'wrapped_by_torchgeo_cmid'):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    wrapped.wrapped_by_torchgeo_cmid = True  # type: ignore[attr-defined]
    for module in modules:
        setattr(module, name, wrapped)


def _augment_video(
    original: Callable[..., Any], self: Any, batch: Any, *args: Any, **kwargs: Any
) -> Any:
    """Augment a video and the one mask of all its frames.

    TorchGeo's data modules for change detection give one mask for two dates, which
    kornia 0.9 refuses: it gets as many copies as there are frames, and one comes back.
    """
    if isinstance(batch, dict) and self.contains_video_sequential and 'mask' in batch:
        image, mask = batch['image'], batch['mask']
        time = image.ndim - 4  # (T, C, H, W) or (B, T, C, H, W)
        if mask.ndim == image.ndim - 1 and mask.shape[time] == 1:
            frames = mask.repeat_interleave(image.shape[time], dim=time)
            output = original(self, {**batch, 'mask': frames}, *args, **kwargs)
            return {**output, 'mask': output['mask'].narrow(time, 0, 1)}
    return original(self, batch, *args, **kwargs)


def _get_weight(original: Callable[[str], 'WeightsEnum'], name: str) -> 'WeightsEnum':
    """List near names where TorchGeo knows no weights of a name."""
    from torchgeo.models.api import _model_weights

    try:
        return original(name)
    except ValueError as error:
        names = {
            str(weight)
            for model, weights in _model_weights.items()
            if isinstance(model, str)
            for weight in weights
        }
        near = difflib.get_close_matches(str(name), sorted(names), cutoff=0.4)
        hint = f'; did you mean {", ".join(near)}?' if near else ''
        raise ValueError(f'{error}{hint}') from None


def _load_state_dict(
    original: Callable[..., tuple[list[str], list[str]]],
    model: 'nn.Module',
    state_dict: dict[str, 'Tensor'],
) -> tuple[list[str], list[str]]:
    """Load strictly into the models of ours; TorchGeo fails on a Swin's classifier."""
    from torchgeo.tasks.utils import _get_input_layer_name_and_module

    from .models.loading import BackboneState, load_strictly
    from .models.normalization import note_pixels
    from .models.transfer import follow_pixels

    if hasattr(model, 'input_normalization'):
        name = model.pretrained_cfg['architecture']  # type: ignore[index]
        head = load_strictly(model, state_dict, f'weights of {name}')
        follow_pixels(model, state_dict)
        return head, []
    stem = f'{_get_input_layer_name_and_module(model)[0]}.weight'
    if stem not in state_dict:
        raise ValueError(
            f'the weights have no tensor {stem}: they belong to another backbone than '
            f'{type(model).__name__}; theirs begin with {", ".join([*state_dict][:3])}'
        )
    loaded = original(model, state_dict)
    if isinstance(state_dict, BackboneState) and state_dict.pixels is not None:
        note_pixels(model, state_dict.pixels)
    return loaded


def _extract_backbone(
    original: Callable[[str], tuple[str, dict[str, 'Tensor']]], path: str
) -> tuple[str, dict[str, 'Tensor']]:
    """Read files that TorchGeo has no layout for: of ours, and the published ones."""
    from .models.loading import extract_backbone, is_ours
    from .models.reading import read_metadata, read_weights

    checkpoint = read_weights(path)
    if not is_ours(checkpoint) and 'hyper_parameters' in checkpoint:
        return original(path)
    state = extract_backbone(checkpoint, path, metadata=read_metadata(path))
    return state.model or '', state


def _configure_callbacks(original: Callable[..., Any], self: 'BaseTask') -> Any:
    """Bring images to the pixels that the weights of any task were trained on."""
    from .callbacks import PixelContract

    callbacks = original(self)
    there = [*callbacks, *self.trainer.callbacks]  # type: ignore[attr-defined]
    if any(isinstance(callback, PixelContract) for callback in there):
        return callbacks
    return [*callbacks, PixelContract()]


def _on_load_checkpoint(
    original: Callable[..., None], self: 'BaseTask', checkpoint: dict[str, Any]
) -> None:
    """Do to images what was done to them when a checkpoint was made."""
    from .callbacks.pixel_contract import restore_decisions

    original(self, checkpoint)
    restore_decisions(self, checkpoint)
