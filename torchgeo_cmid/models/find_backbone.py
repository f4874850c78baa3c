# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Where a task keeps its backbone: one table for CMID's and TorchGeo's tasks."""

from typing import NamedTuple

from torch import nn


class Home(NamedTuple):
    """Where the networks are in a task."""

    #: Path of the backbone: of a pair, of the one that is trained.
    backbone: str
    #: Path of its moving average. None: there is none.
    teacher: str | None = None


#: Name of a task's class, or of one that it inherits from -> where its networks are.
HOMES = {
    'BYOL': Home('model.backbone.model', 'model.target.model'),
    'CMID': Home('student.backbone', 'teacher.backbone'),
    'CMIDObjectDetection': Home('model.backbone.encoder'),
    'ChangeDetection': Home('model.encoder'),
    'Classification': Home('model'),
    'InstanceSegmentation': Home('model.backbone.body'),
    'MAE': Home('backbone.vit'),
    'MoCo': Home('backbone', 'backbone_momentum'),
    'ObjectDetection': Home('model.backbone.body'),
    'PixelwiseRegression': Home('model.encoder'),
    'Regression': Home('model'),
    'SemanticSegmentation': Home('model.encoder'),
    'SimCLR': Home('backbone'),
}


def find_backbone(task: nn.Module, path: str | None = None) -> nn.Module:
    """Find the backbone of a task: of student and teacher, the student's.

    Args:
        task: A task of ours or of TorchGeo, or one that inherits from it; any module,
            if *path* is given.
        path: Path of the backbone, such as 'model.encoder'. None: the table knows it.

    Returns:
        The backbone, compiled if it is: a timm model, its classifier included where the
        task has one; an encoder of segmentation_models_pytorch; or the ResNet of a
        detector of torchvision.

    Raises:
        ValueError: If the task is none that is known, or has no module of that path.
    """
    home = _find_home(task)
    if path is None and home is None:
        raise _refuse(task, 'it is not known where it keeps its backbone')
    return _get_module(task, home.backbone if path is None and home else str(path))


def find_teacher(task: nn.Module) -> nn.Module | None:
    """Find the moving average of a task's backbone.

    Args:
        task: Any task.

    Returns:
        The teacher's backbone; None if there is none, or the task is none that is
        known.

    Raises:
        ValueError: If a task of a known name is built otherwise.
    """
    home = _find_home(task)
    if home is None or home.teacher is None:
        return None
    return _get_module(task, home.teacher)


def _find_home(task: nn.Module) -> Home | None:
    """Look a task up, by its class and then by those that it inherits from."""
    names = [each.__name__ for each in type(task).__mro__]
    return next((HOMES[name] for name in names if name in HOMES), None)


def _get_module(task: nn.Module, path: str) -> nn.Module:
    """Get a module of a task by its path."""
    try:
        return task.get_submodule(path)
    except AttributeError as error:
        raise _refuse(task, f"it has no module '{path}'") from error


def _refuse(task: nn.Module, reason: str) -> ValueError:
    """Say why there is no backbone, and which modules could be one."""
    names = [
        name
        for child, module in task.named_children()
        for name in (child, *(f'{child}.{each}' for each, _ in module.named_children()))
    ]
    shown = ', '.join(names[:20]) + (', ...' if len(names) > 20 else '')
    return ValueError(
        f'{type(task).__name__}: {reason}. Give the path of one of its modules, such '
        f"as 'model.encoder': {shown or 'it has none'}"
    )
