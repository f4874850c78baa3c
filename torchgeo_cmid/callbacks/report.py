# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Two pictures of a finished pre-training: its losses, and what was learnt."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from ..datasets import Patch, Scenes
from ..transforms import expand_mask, fill_with_spectral_mean, random_cell_mask

LOSSES = ('loss', 'reconstruction', 'global', 'local')


class PretrainingReport(Callback):
    """Draw the loss curve and a picture when a run ends, and say where they lie.

    The picture shows patches, what the student sees of them, and what it reconstructs;
    and, where the data module reads whole scenes, the first three principal components
    of the feature map as red, green and blue, laid over the first scene.
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
        self.patches: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Keep the curves in the checkpoint, so that a resumed run has all of them.

        Returns:
            The losses of each step.
        """
        return {'curves': self.curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the curves of a checkpoint.

        Args:
            state_dict: The losses of each step.
        """
        self.curves = state_dict['curves']

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the losses of the step.

        Args:
            trainer: The trainer.
            pl_module: The task.
            outputs: The output of the step.
            batch: The batch.
            batch_idx: Its index.
        """
        self.patches = batch['image'][: self.num_patches].detach()
        for name in LOSSES:
            value = trainer.callback_metrics.get(f'train_{name}')
            if value is not None:
                self.curves.setdefault(name, []).append(float(value))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw both pictures and say where everything lies.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        if not trainer.is_global_zero or self.patches is None:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        curve, picture = folder / 'loss_curve.png', folder / 'picture.png'
        draw_curves(self.curves).savefig(curve, dpi=120)
        scene = _read_scene(trainer.datamodule, pl_module)  # type: ignore[attr-defined]
        self._draw_picture(pl_module, scene).savefig(picture, dpi=120)
        checkpoint = (
            getattr(trainer.checkpoint_callback, 'best_model_path', '') or 'none'
        )
        print(f'checkpoint: {checkpoint}\nloss curve: {curve}\npicture:    {picture}')

    @torch.no_grad()
    def _draw_picture(self, task: Any, scene: Tensor | None) -> Figure:
        """Draw patches with their reconstructions, and the scene with its features."""
        assert self.patches is not None
        training = task.training
        task.eval()
        channels, size = task.hparams['in_channels'], task.hparams['size']
        patches = self.patches[:, :channels].to(task.device)
        patches = F.interpolate(patches, (size, size), mode='bilinear')
        mask = random_cell_mask(
            len(patches), task.views.cells, task.hparams['mask_ratio'], task.device
        )
        pixels = expand_mask(mask, size)
        columns = {'image': patches, 'masked': fill_with_spectral_mean(patches, pixels)}
        if task.hparams['reconstruction_branch']:
            prediction = task.student.decoder(task.student(patches, mask))
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
            panel.imshow(principal_components(task, scene), alpha=0.6)
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


def draw_curves(curves: dict[str, list[float]]) -> Figure:
    """Draw the losses of each step.

    Args:
        curves: Values of each step by the name of the loss.

    Returns:
        The figure.
    """
    figure = Figure((2.6 * max(len(curves), 1), 2.6), layout='constrained')
    axes = figure.subplots(1, max(len(curves), 1), squeeze=False)[0]
    for axis, (name, values) in zip(axes, curves.items(), strict=False):
        window = max(len(values) // 20, 1)
        smooth = torch.tensor(values).unfold(0, window, 1).mean(dim=1)
        axis.plot(values, alpha=0.3)
        axis.plot(range(window - 1, len(values)), smooth)
        axis.set(title=name, xlabel='step')
    return figure


@torch.no_grad()
def principal_components(task: Any, scene: Tensor, shifts: int = 16) -> Tensor:
    """Map a scene's features to three colours.

    The backbone sees windows of its own size, shifted by less than a cell, so that the
    mean over overlapping windows is finer than its stride.

    Args:
        task: The task, in eval mode.
        scene: Normalised image, (C, H, W), at least *size* x *size*.
        shifts: Number of windows along each axis.

    Returns:
        The first three principal components within 0..1, (H, W, 3).
    """
    size = task.hparams['size']
    height, width = scene.shape[1:]
    total = scene.new_zeros(task.student.num_features, height, width)
    count = scene.new_zeros(height, width)
    for top in torch.linspace(0, height - size, shifts).int().tolist():
        for left in torch.linspace(0, width - size, shifts).int().tolist():
            window = scene[None, :, top : top + size, left : left + size]
            features = F.interpolate(task.student(window), (size, size), mode='nearest')
            total[:, top : top + size, left : left + size] += features[0]
            count[top : top + size, left : left + size] += 1
    cells = (total / count).flatten(1).T  # (H W, D)
    cells = cells - cells.mean(dim=0)
    # the eigenvectors of a D x D matrix: H W is far larger than D
    axes = torch.linalg.eigh(cells.T @ cells).eigenvectors[:, -3:].flip(1)
    components = cells @ axes
    low, high = components.quantile(torch.tensor([0.02, 0.98]).to(components), dim=0)
    components = (components - low) / (high - low).clamp(min=1e-6)
    colours: Tensor = components.clamp(0, 1).view(height, width, 3).cpu()
    return colours


def _read_scene(datamodule: Any, task: Any, largest: int = 384) -> Tensor | None:
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
