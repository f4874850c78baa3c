# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Registers torchgeo_cmid with TorchGeo; nothing else touches another package's tables.

TorchGeo's command line finds a task or a data module by its class name, among the
subclasses of ``BaseTask`` and ``BaseDataModule`` that have been imported: there it is
enough to import ours. Models and weights go into the tables of TorchGeo, timm and smp,
and functions that refuse them, or must know of pixels, are wrapped: seven of TorchGeo,
four of Lightning and its parser, one of kornia, one of smp.
"""

import difflib
import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI
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
    takers = [  # each decoder of smp has the name of its own
        module
        for name, module in sys.modules.items()
        if name.startswith('segmentation_models_pytorch.decoders.')
        and hasattr(module, 'get_encoder')
    ]
    _wrap(_get_encoder, smp.encoders, *takers)


def _register_tasks() -> None:
    """Let the command line find our tasks, and stock tasks load our weights."""
    import yaml
    from jsonargparse import get_loader, set_loader
    from jsonargparse._typehints import ActionTypeHint
    from lightning.pytorch.cli import LightningCLI
    from torchgeo.tasks import BaseTask, InstanceSegmentation, ObjectDetection, utils

    from . import tasks  # noqa: F401
    from .runs.config_text import guarded

    _wrap(_load_state_dict, utils)
    _wrap(_extract_backbone, utils)
    for detector in (ObjectDetection, InstanceSegmentation):
        _wrap(_build_detector, detector, name='configure_models')
    # the parser would refuse a name or a file, which the other tasks take
    ObjectDetection.__init__.__annotations__['weights'] |= str
    InstanceSegmentation.__init__.__annotations__['weights_backbone'] |= str
    for wrapper in (_configure_callbacks, _on_load_checkpoint, _on_save_checkpoint):
        _wrap(wrapper, BaseTask)
        _wrap_in_subclasses(wrapper, BaseTask)
    _wrap(_parse_arguments, LightningCLI, name='parse_arguments')
    _wrap(_parse_ckpt_path, LightningCLI, name='_parse_ckpt_path')
    _wrap(_set_optimizer, LightningCLI, name=_SET_OPTIMIZER)
    _wrap(_extra_help, ActionTypeHint)
    loader = get_loader('yaml')
    if not hasattr(loader, 'guarded_by_torchgeo_cmid'):
        set_loader('yaml', guarded(loader), (yaml.YAMLError,))


# The modules of TorchGeo that get something from us -> what brings it.
HOSTS: dict[str, Callable[[], None]] = {
    'torchgeo.models': _register_models,
    'torchgeo.datamodules': _register_datamodules,
    'torchgeo.tasks': _register_tasks,
}


#: Lightning's own, by which the command gives a task an optimizer.
_SET_OPTIMIZER = '_add_configure_optimizers_method_to_model'


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


def _wrap_in_subclasses(wrapper: Callable[..., Any], base: type[Any]) -> None:
    """Wrap a method in the classes that override it, without a call of the base's.

    Args:
        wrapper: Takes the method and then its arguments, and may be called twice.
        base: The class whose subclasses are meant, those that come as well.
    """
    name = wrapper.__name__.removeprefix('_')
    before = vars(base).get('__init_subclass__')

    def wrap(cls: type[Any], /, **kwargs: Any) -> None:
        if before is None:
            super(base, cls).__init_subclass__(**kwargs)
        else:
            before.__func__(cls, **kwargs)
        if name in vars(cls):
            _wrap(wrapper, cls)

    base.__init_subclass__ = classmethod(wrap)  # type: ignore[assignment]


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


def _get_encoder(
    original: Callable[..., 'nn.Module'],
    name: str,
    in_channels: int = 3,
    depth: int = 5,
    weights: str | None = None,
    *args: Any,
    **kwargs: Any,
) -> 'nn.Module':
    """Load weights into encoders of ours; smp looks on a hub for those of its own."""
    from .models.architectures import ARCHITECTURES
    from .models.loading import get_state_dict

    if name not in ARCHITECTURES or weights is None:
        return original(name, in_channels, depth, weights, *args, **kwargs)
    state = get_state_dict(weights)
    encoder = original(name, in_channels, depth, None, *args, **kwargs)
    encoder.load_state_dict(state)
    return encoder


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
    if isinstance(state_dict, BackboneState) and stem in state_dict:
        # TorchGeo looks for a classifier where ResNets have it
        head = load_strictly(model, state_dict, f'weights of {type(model).__name__}')
        if state_dict.pixels is not None:
            note_pixels(model, state_dict.pixels)
        return head, []
    if stem not in state_dict:
        raise ValueError(
            f'the weights have no tensor {stem}: they belong to another backbone than '
            f'{type(model).__name__}; theirs begin with {", ".join([*state_dict][:3])}'
        )
    return original(model, state_dict)


def _extract_backbone(
    original: Callable[[str], tuple[str, dict[str, 'Tensor']]], path: str
) -> tuple[str, dict[str, 'Tensor']]:
    """Read files that TorchGeo has no layout for: of ours, and the published ones."""
    from .callbacks.pixel_contract import find_fine_tuned
    from .models.loading import BackboneState, extract_backbone, is_ours
    from .models.reading import read_metadata, read_weights

    checkpoint = read_weights(path)
    if not is_ours(checkpoint) and 'hyper_parameters' in checkpoint:
        name, tensors = original(path)
        fine_tuned = find_fine_tuned(checkpoint)
        if fine_tuned is not None:
            known = BackboneState(tensors)
            known.pixels, known.model = fine_tuned.pixels, fine_tuned.model
            tensors = known
        return name, tensors
    state = extract_backbone(checkpoint, path, metadata=read_metadata(path))
    return state.model or '', state


def _build_detector(original: Callable[..., None], self: Any) -> None:
    """Load weights that torchvision does not know into the ResNet of a detector."""
    from .models.detectors import is_torchvision, load_body

    # of instance segmentation ``weights`` are those of a whole detector
    name = 'weights_backbone' if hasattr(self, 'weights_backbone') else 'weights'
    weights, channels = getattr(self, name), self.hparams['in_channels']
    if is_torchvision(weights, self.hparams['backbone']):
        original(self)
        return
    setattr(self, name, None)
    self.hparams['in_channels'] = 3  # the stem is made of the weights'
    try:
        original(self)
    finally:
        setattr(self, name, weights)
        self.hparams['in_channels'] = channels
    chosen = 'trainable_layers' in self.hparams  # else torchvision trains all by now
    load_body(self.model.backbone.body, weights, channels, freeze=not chosen)


def _configure_callbacks(original: Callable[..., Any], self: 'BaseTask') -> Any:
    """Bring images to the pixels that the weights of any task were trained on."""
    from lightning.pytorch import Callback

    from .callbacks import PixelContract

    callbacks = original(self)
    callbacks = [callbacks] if isinstance(callbacks, Callback) else [*callbacks]
    there = [*callbacks, *self.trainer.callbacks]  # type: ignore[attr-defined]
    if any(isinstance(callback, PixelContract) for callback in there):
        return callbacks
    return [*callbacks, PixelContract()]


def _on_save_checkpoint(
    original: Callable[..., None], self: 'BaseTask', checkpoint: dict[str, Any]
) -> None:
    """Keep what is done to images, in checkpoints of weights alone as well."""
    from .callbacks.pixel_contract import save_decisions

    original(self, checkpoint)
    save_decisions(self, checkpoint)


def _parse_arguments(
    original: Callable[..., None], self: 'LightningCLI', parser: Any, args: Any
) -> None:
    """Keep what was given, to tell it from what are defaults."""
    self.given_to_torchgeo_cmid = args  # type: ignore[attr-defined]
    original(self, parser, args)


def _set_optimizer(
    original: Callable[..., None], self: 'LightningCLI', subcommand: str | None
) -> None:
    """Refuse a schedule without an optimizer, which Lightning ignores."""
    from .tasks.pretraining import PretrainingTask

    given = self.config[subcommand] if subcommand else self.config
    alone = given.get('lr_scheduler') and not given.get('optimizer')
    if alone and isinstance(self.model, PretrainingTask):
        raise ValueError(
            '--lr_scheduler goes with --optimizer: give --optimizer AdamW, or another, '
            'too; or neither, and the task has its own warm-up and cosine'
        )
    original(self, subcommand)


def _extra_help(original: Callable[..., str], self: Any) -> str:
    """Name no subclass of torch's modules: a thousand lines of help were theirs."""
    from torch import nn

    hint = self._typehint
    if nn.Module in (hint, *get_args(hint)):
        return ', any module, such as torchgeo_cmid.transforms.Views'
    return original(self)


def _parse_ckpt_path(original: Callable[..., None], self: 'LightningCLI') -> None:
    """Take plain values from a checkpoint of ours, and let what is typed win.

    Lightning imports whatever class a checkpoint names, and drops what is typed.
    """
    from .models.loading import is_ours
    from .models.reading import read_weights
    from .tasks.resume import merge_arguments

    command = self.config.get('subcommand')
    path = self.config[command].get('ckpt_path') if command else None
    if not path or not os.path.isfile(path):
        original(self)
        return
    checkpoint = read_weights(path)
    if not is_ours(checkpoint):
        original(self)
        return
    args = self.given_to_torchgeo_cmid  # type: ignore[attr-defined]
    if isinstance(args, dict) or hasattr(args, 'as_dict'):
        given = self.parser.parse_object(args, defaults=False)
    else:
        given = self.parser.parse_args(args, defaults=False)
    model = given[command].get('model') or {}
    typed = model.get('init_args')
    arguments = merge_arguments(
        checkpoint, {} if typed is None else vars(typed.clone()), str(path)
    )
    chosen = {
        'class_path': model.get('class_path') or 'torchgeo_cmid.tasks.cmid.cmid',
        'init_args': arguments,
    }
    self.config = self.parser.parse_object({command: {'model': chosen}}, self.config)


def _on_load_checkpoint(
    original: Callable[..., None], self: 'BaseTask', checkpoint: dict[str, Any]
) -> None:
    """Do to images what was done to them when a checkpoint was made."""
    from .callbacks.pixel_contract import restore_decisions

    original(self, checkpoint)
    restore_decisions(self, checkpoint)
