# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Two pictures of a finished pre-training: its losses, and what was learnt."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..datasets import Patch, Scenes
from ..runs.log_steps import LogSteps
from ..transforms import expand_mask, fill_with_spectral_mean, random_cell_mask

LOSSES = ('loss', 'reconstruction', 'global', 'local')

#: Most values of a curve that are kept: a checkpoint stays below 300 kB, and a picture
#: has no more pixels.
MOST_VALUES = 4096


class PretrainingReport(Callback):
    """Draw the loss curve and a picture when a run ends, and say where they lie.

    The picture shows patches, what the student sees of them, and what it reconstructs;
    and, where the data module reads whole scenes, the first three principal components
    of the feature map as red, green and blue, laid over the first scene. A task that
    has no ``student``, such as TorchGeo's MoCo, gets the loss curve alone.

    Losses are noted where the trainer logs, at ``log_every_n_steps``, and at the first
    and the last step.
    """

    def __init__(
        self, rgb_bands: list[int] | None = None, num_patches: int = 3
    ) -> None:
        """Initialize a new PretrainingReport instance.

        Args:
            rgb_bands: Positions, from 0, of the three bands to show as red, green and
                blue (defaults to the first three, or the first alone).
            num_patches: Number of patches to show.
        """
        self.rgb_bands = rgb_bands
        self.num_patches = num_patches
        self.curves: dict[str, list[float]] = {}
        self.steps: dict[str, list[int]] = {}
        self.patches: Tensor | None = None
        self._thinning = 1
        self._log_steps = LogSteps()
        self._ends: tuple[int, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """Keep the curves in the checkpoint, so that a resumed run has all of them.

        Returns:
            The noted losses by name, their steps, and how many times
            ``log_every_n_steps`` lies between two of them.
        """
        return {'curves': self.curves, 'steps': self.steps, 'thinning': self._thinning}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the curves of a checkpoint.

        Args:
            state_dict: What :meth:`state_dict` gave. Without ``steps``, as in
                checkpoints of version 0.1, there is a value of each step from 0.
        """
        self.curves = {name: list(v) for name, v in state_dict['curves'].items()}
        steps = state_dict.get('steps')
        if steps is None:
            steps = {name: range(len(v)) for name, v in self.curves.items()}
        self.steps = {name: list(v) for name, v in steps.items()}
        self._thinning = state_dict.get('thinning', 1)
        while self._thin():
            pass

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn which steps are the first and the last.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._log_steps.start(trainer)
        steps = trainer.estimated_stepping_batches  # infinite for a run without end
        last = 0 if math.isinf(steps) else int(steps)
        self._ends = trainer.global_step + 1, last

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
    ) -> None:
        """Note the losses of the step, if it is one that is logged.

        Args:
            trainer: The trainer.
            pl_module: The task.
            outputs: The output of the step.
            batch: The batch.
            *args: Its index.
        """
        if not self._log_steps.ended(trainer, thinning=self._thinning, also=self._ends):
            return
        if isinstance(batch, Mapping) and 'image' in batch:
            # a view would keep the whole batch
            self.patches = batch['image'][: self.num_patches].detach().clone()
        metrics = trainer.callback_metrics
        names = [name for name in LOSSES if f'train_{name}' in metrics]
        if not names:
            return
        # one transfer: each waits for the device
        losses = torch.stack([metrics[f'train_{name}'].float() for name in names])
        for name, value in zip(names, losses.tolist(), strict=True):
            self.curves.setdefault(name, []).append(value)
            self.steps.setdefault(name, []).append(trainer.global_step - 1)
        self._thin()

    def _thin(self) -> bool:
        """Drop every second value once there are too many."""
        if max(map(len, self.curves.values()), default=0) <= MOST_VALUES:
            return False
        self.curves = {name: values[::2] for name, values in self.curves.items()}
        self.steps = {name: steps[::2] for name, steps in self.steps.items()}
        self._thinning *= 2
        return True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw both pictures and say where everything lies.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        if not trainer.is_global_zero or not (self.curves or self.patches is not None):
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        curve, picture = folder / 'loss_curve.png', folder / 'picture.png'
        draw_curves(self.curves, self.steps).savefig(curve, dpi=120)
        shown: Path | str = picture
        if not isinstance(getattr(pl_module, 'student', None), nn.Module):
            shown = f'none, as {type(pl_module).__name__} has no student to show'
        elif self.patches is None:
            shown = "none, as the batches have no 'image'"
        else:
            scene = _read_scene(trainer.datamodule, pl_module)  # type: ignore[attr-defined]
            self._draw_picture(pl_module, scene).savefig(picture, dpi=120)
        checkpoint = (
            getattr(trainer.checkpoint_callback, 'best_model_path', '') or 'none'
        )
        print(f'checkpoint: {checkpoint}\nloss curve: {curve}\npicture:    {shown}')

    @torch.no_grad()
    def _draw_picture(self, task: LightningModule, scene: Tensor | None) -> Figure:
        """Draw patches with their reconstructions, and the scene with its features."""
        assert self.patches is not None
        student: Any = task.student
        training = task.training
        task.eval()
        channels, size = task.hparams['in_channels'], task.hparams['size']
        patches = self.patches[:, :channels].to(task.device)
        patches = F.interpolate(patches, (size, size), mode='bilinear')
        cells = size // task.hparams['mask_patch_size']
        mask = random_cell_mask(
            len(patches), cells, task.hparams['mask_ratio'], patches.device
        )
        pixels = expand_mask(mask, size)
        columns = {'image': patches, 'masked': fill_with_spectral_mean(patches, pixels)}
        if hasattr(student, 'decoder'):
            prediction = student.decoder(student(patches, mask))
            columns['reconstruction'] = torch.where(pixels.bool(), prediction, patches)

        width = len(columns) + (3 if scene is not None else 0)
        figure = Figure((2.6 * width, 2.6 * len(patches)), layout='constrained')
        axes = figure.subplots(len(patches), width, squeeze=False)
        for column, (title, images) in enumerate(columns.items()):
            axes[0, column].set_title(title)
            for row in range(len(patches)):
                axes[row, column].imshow(self._stretch(images[row], patches[row]))
        if scene is not None:
            grid = axes[0, 0].get_gridspec()
            for axis in axes[:, len(columns) :].flat:
                axis.remove()
            panel = figure.add_subplot(grid[:, len(columns) :])
            panel.set_title('principal components of the features, over the scene')
            panel.imshow(self._stretch(scene, scene).mean(-1), cmap='gray')
            panel.imshow(principal_components(student, scene, size), alpha=0.6)
            panel.set_axis_off()
        for axis in axes[:, : len(columns)].flat:
            axis.set_axis_off()
        task.train(training)
        return figure

    def _stretch(self, image: Tensor, reference: Tensor) -> Tensor:
        """Show three bands of an image, (H, W, 3), within 2-98 % of a reference."""
        channels = len(image)
        bands = self.rgb_bands or ([0, 1, 2] if channels >= 3 else [0] * 3)
        low, high = (
            reference[bands]
            .flatten(1)
            .quantile(torch.tensor([0.02, 0.98]).to(reference), dim=1)
        )
        stretched: Tensor = (image[bands].permute(1, 2, 0) - low) / (high - low).clamp(
            min=1e-6
        )
        return stretched.clamp(0, 1).cpu()


def draw_curves(
    curves: dict[str, list[float]], steps: dict[str, list[int]] | None = None
) -> Figure:
    """Draw losses over the steps.

    Args:
        curves: Values by the name of the loss.
        steps: The steps of these values, by the same names. None: 0, 1, 2, ...

    Returns:
        The figure.
    """
    figure = Figure((2.6 * max(len(curves), 1), 2.6), layout='constrained')
    axes = figure.subplots(1, max(len(curves), 1), squeeze=False)[0]
    for axis, (name, values) in zip(axes, curves.items(), strict=False):
        x = list(range(len(values))) if steps is None else steps[name]
        window = len(values) // 20
        axis.plot(x, values, alpha=0.3 if window > 1 else 1.0)
        if window > 1:
            smooth = torch.tensor(values).unfold(0, window, 1).mean(dim=1)
            axis.plot(x[window - 1 :], smooth)
        axis.set(title=name, xlabel='step')
    return figure


@torch.no_grad()
def principal_components(
    student: nn.Module, scene: Tensor, size: int, shifts: int = 16
) -> Tensor:
    """Map a scene's features to three colours.

    The backbone sees windows of its own size, shifted by less than a cell, so that the
    mean over overlapping windows is finer than its stride. The components are those of
    the cells of a few windows that cover the scene; only three channels, not all D, are
    ever enlarged to pixels.

    Args:
        student: Gives the map of features, (B, D, h, w), of images, (B, C, S, S); in
            eval mode.
        scene: Normalised image, (C, H, W), at least *size* x *size*.
        size: Height and width S of a window in pixels.
        shifts: Number of windows along each axis.

    Returns:
        The first three principal components within 0..1, (H, W, 3).
    """
    height, width = scene.shape[1:]

    def features(top: int, left: int) -> Tensor:
        window = scene[None, :, top : top + size, left : left + size]
        cells: Tensor = student(window)[0].float()  # (D, h, w)
        return cells

    cover = [
        features(top, left).flatten(1).T
        for top in _starts(height, size, math.ceil(height / size))
        for left in _starts(width, size, math.ceil(width / size))
    ]
    cells = torch.cat(cover)  # (N, D)
    mean = cells.mean(dim=0)
    axes = torch.linalg.svd(cells - mean, full_matrices=False).Vh[:3]  # (3, D)

    total = scene.new_zeros(3, height, width, dtype=torch.float32)
    count = torch.zeros_like(total[0])
    for top in _starts(height, size, shifts):
        for left in _starts(width, size, shifts):
            centered = features(top, left) - mean.view(-1, 1, 1)
            three = torch.einsum('kd, dhw -> khw', axes, centered)
            (enlarged,) = F.interpolate(three[None], (size, size), mode='nearest')
            total[:, top : top + size, left : left + size] += enlarged
            count[top : top + size, left : left + size] += 1
    components = (total / count).permute(1, 2, 0)  # (H, W, 3)
    limits = torch.tensor([0.02, 0.98]).to(components)
    low, high = components.flatten(0, 1).quantile(limits, dim=0)
    colours: Tensor = (components - low) / (high - low).clamp(min=1e-6)
    return colours.clamp(0, 1).cpu()


def _starts(length: int, size: int, number: int) -> list[int]:
    """Where windows start along an axis, evenly spread, each once."""
    starts = torch.linspace(0, length - size, max(number, 1)).int().tolist()
    return list(dict.fromkeys(starts))


def _read_scene(
    datamodule: Any, task: LightningModule, largest: int = 384
) -> Tensor | None:
    """Read the upper left square of the first scene, normalised, (C, n, n)."""
    dataset = getattr(datamodule, 'dataset', None)
    size: int = task.hparams['size']
    if not isinstance(dataset, Scenes):
        return None
    first = dataset.scenes[0]
    side = min(first.height, first.width, max(largest, size))
    if side < size:
        return None
    image: Tensor = dataset[Patch(0, 0, 0, side)]['image'].to(task.device)
    mean, std = datamodule.mean.to(image), datamodule.std.to(image)
    scene: Tensor = (image - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    return scene
