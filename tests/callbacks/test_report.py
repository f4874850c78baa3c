# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The pictures of a finished run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.image import imread
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torchgeo.tasks import MoCo

from torchgeo_cmid.callbacks import PretrainingReport
from torchgeo_cmid.callbacks import report as report_module
from torchgeo_cmid.callbacks.report import (
    MOST_VALUES,
    draw_curves,
    principal_components,
)
from torchgeo_cmid.datamodules import OlindaDataModule
from torchgeo_cmid.tasks import CMID


def make_task(in_channels: int, **kwargs: bool) -> CMID:
    torch.manual_seed(0)
    return CMID(
        model='resnet18',
        in_channels=in_channels,
        size=64,
        mask_patch_size=16,
        queue_size=8,
        hidden_dim=16,
        num_prototypes=16,
        bottleneck_dim=8,
        **kwargs,
    )


def make_trainer(tmp_path: Path, report: PretrainingReport, **kwargs: Any) -> Trainer:
    return Trainer(
        default_root_dir=tmp_path,
        accelerator='cpu',
        logger=False,
        max_epochs=1,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[report],
        **kwargs,
    )


def panel(axis: Axes) -> Tensor:
    """What a panel shows last, (H, W, 3)."""
    return torch.from_numpy(np.asarray(axis.images[-1].get_array()))


class Steps(LightningModule):
    """Logs the index of each step as its loss, and the batches as another."""

    def __init__(self) -> None:
        """One layer, so that there is something to train."""
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.batches = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log('train_loss', float(self.global_step))
        self.log('train_local', self.batches)
        self.batches += 1
        loss: Tensor = self.layer(torch.zeros(1)).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def note(report: PretrainingReport, step: int, every: int = 1, **metrics: Any) -> None:
    """Tell the report of one step."""
    trainer: Any = SimpleNamespace(
        global_step=step + 1,
        log_every_n_steps=every,
        callback_metrics={k: torch.tensor(float(v)) for k, v in metrics.items()},
    )
    report.on_train_batch_end(trainer, Steps(), None, None, 0)


class TestPretrainingReport:
    def test_pictures(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        report = PretrainingReport(rgb_bands=[2, 1, 0])
        trainer = make_trainer(tmp_path, report)
        data = OlindaDataModule(patch_size=64, length=8, batch_size=4)
        trainer.fit(make_task(6), data)
        assert [len(values) for values in report.curves.values()] == [2] * 4
        printed = capsys.readouterr().out
        for name in ('loss_curve.png', 'picture.png'):
            assert str(tmp_path / name) in printed
            image = imread(tmp_path / name)
            assert image.shape[0] > 100
            assert image[..., :3].std() > 0.1  # not blank
        assert 'epoch=0-step=2.ckpt' in printed

    @pytest.mark.parametrize('accumulated', [1, 2])
    def test_notes_where_the_trainer_logs(
        self, tmp_path: Path, accumulated: int
    ) -> None:
        """Regression: each step was noted, and waited for."""
        report = PretrainingReport()
        arguments = {'accumulate_grad_batches': accumulated, 'log_every_n_steps': 3}
        trainer = make_trainer(tmp_path, report, **arguments)
        data = DataLoader(torch.zeros(8 * accumulated, 1))  # type: ignore[arg-type]
        trainer.fit(Steps(), data)
        assert report.steps == {'loss': [0, 2, 5, 7], 'local': [0, 2, 5, 7]}
        assert report.curves['loss'] == [0, 2, 5, 7]
        assert report.curves['local'] == [
            accumulated * (step + 1) - 1 for step in (0, 2, 5, 7)
        ]
        (axis, _) = draw_curves(report.curves, report.steps).axes
        assert list(axis.lines[0].get_xdata()) == [0, 2, 5, 7]
        assert list(axis.lines[0].get_ydata()) == [0, 2, 5, 7]

    def test_never_logs(self, tmp_path: Path) -> None:
        report = PretrainingReport()
        trainer = make_trainer(tmp_path, report, log_every_n_steps=0)
        trainer.fit(Steps(), DataLoader(torch.zeros(4, 1)))  # type: ignore[arg-type]
        assert report.steps['loss'] == [0, 3]

    def test_one_transfer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Regression: the device was waited for once for each loss of each step."""
        waits: list[str] = []
        for name in ('tolist', 'item', '__float__', 'cpu'):
            method = getattr(Tensor, name)

            def spy(x: Tensor, name: str = name, method: Any = method) -> Any:
                waits.append(name)
                return method(x)

            monkeypatch.setattr(Tensor, name, spy)
        report = PretrainingReport()
        losses = dict.fromkeys(('train_loss', 'train_global', 'train_local'), 1)
        for step in range(1, 8):
            note(report, step, every=4, **losses)
        assert waits == ['tolist'] * 2
        assert report.steps['local'] == [3, 7]

    def test_patches_do_not_keep_the_batch(self, tmp_path: Path) -> None:
        report = PretrainingReport(num_patches=1)
        trainer = make_trainer(tmp_path, report)
        samples = [{'image': torch.rand(1, 8, 8)} for _ in range(4)]
        trainer.fit(Steps(), DataLoader(samples, batch_size=4))  # type: ignore[arg-type]
        assert report.patches is not None
        assert report.patches.untyped_storage().nbytes() == 8 * 8 * 4

    def test_resumed_run_has_all_steps(self) -> None:
        report = PretrainingReport()
        for step in (0, 4, 9):
            note(report, step, train_loss=step / 2)
        resumed = PretrainingReport()
        resumed.load_state_dict(report.state_dict())
        note(resumed, 14, every=5, train_loss=7)
        assert resumed.curves == {'loss': [0.0, 2.0, 4.5, 7.0]}
        assert resumed.steps == {'loss': [0, 4, 9, 14]}
        assert report.steps == {'loss': [0, 4, 9]}  # not the same lists

    def test_checkpoint_of_version_01(self) -> None:
        """It holds the losses of each step and nothing else."""
        resumed = PretrainingReport()
        resumed.load_state_dict({'curves': {'loss': [3.0, 2.0], 'local': [1.0]}})
        assert resumed.curves == {'loss': [3.0, 2.0], 'local': [1.0]}
        assert resumed.steps == {'loss': [0, 1], 'local': [0]}
        note(resumed, 2, train_loss=1)
        assert resumed.steps['loss'] == [0, 1, 2]
        number = 5 * MOST_VALUES
        resumed.load_state_dict({'curves': {'loss': [float(i) for i in range(number)]}})
        assert resumed.steps == {'loss': list(range(0, number, 8))}
        assert resumed.curves['loss'] == resumed.steps['loss']

    def test_long_run(self) -> None:
        """Regression: the curves of all steps were in each checkpoint."""
        report = PretrainingReport()
        number = 3 * MOST_VALUES
        for step in range(number):
            note(report, step, train_loss=step)
        steps = report.steps['loss']
        assert MOST_VALUES / 2 <= len(steps) <= MOST_VALUES
        assert report.curves['loss'] == steps
        assert steps[0] == 0
        assert steps[-1] >= number - 4
        assert set(np.diff(steps)) <= {3, 4}  # evenly, up to the first

    def test_panels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Regression: no test saw what was drawn. Each panel shows what it says."""
        task = make_task(3)
        generator = torch.Generator().manual_seed(0)
        report = PretrainingReport(num_patches=2)
        patches = torch.randn(2, 3, 64, 64, generator=generator)
        report.patches = patches
        mask = torch.rand(2, 4, 4, generator=generator) > 0.4
        monkeypatch.setattr(report_module, 'random_cell_mask', lambda *args: mask)
        scene = torch.randn(3, 96, 96, generator=generator)
        scene[:, :, 48:] += 2
        figure = report._draw_picture(task, scene)
        assert task.training
        task.eval()
        pixels = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
        mean = patches.mean((2, 3), keepdim=True)
        prediction = task.student.decoder(task.student(patches, mask))
        expected = {
            'image': patches,
            'masked': torch.where(pixels, mean, patches),
            'reconstruction': torch.where(pixels, prediction, patches),
        }
        axes = figure.axes
        assert [axis.get_title() for axis in axes[:3]] == list(expected)
        low, high = patches.flatten(2).quantile(torch.tensor([0.02, 0.98]), dim=2)
        for column, images in enumerate(expected.values()):
            for row, image in enumerate(images):
                shown = (image - low[row].view(3, 1, 1)) / (high[row] - low[row]).view(
                    3, 1, 1
                )
                torch.testing.assert_close(
                    panel(axes[3 * row + column]),
                    shown.clamp(0, 1).permute(1, 2, 0).detach(),
                )
        features = panel(axes[6])
        torch.testing.assert_close(
            features, principal_components(task.student, scene, 64)
        )
        left, right = features[:, :32].mean((0, 1)), features[:, 64:].mean((0, 1))
        assert (left - right).abs().max() > 0.3

    def test_task_without_student(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """TorchGeo's own tasks get what can be drawn of them, and a reason."""
        task = MoCo(model='resnet18', in_channels=3, version=1, size=32)
        samples = [{'image': torch.rand(3, 32, 32)} for _ in range(4)]
        trainer = make_trainer(tmp_path, PretrainingReport())
        trainer.fit(task, DataLoader(samples, batch_size=2))  # type: ignore[arg-type]
        assert (tmp_path / 'loss_curve.png').exists()
        assert not (tmp_path / 'picture.png').exists()
        printed = capsys.readouterr().out
        assert 'picture:    none, as MoCo has no student to show' in printed

    def test_batches_without_images(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        task = Steps()
        task.student = task.layer
        trainer = make_trainer(tmp_path, PretrainingReport())
        trainer.fit(task, DataLoader(torch.zeros(4, 1)))  # type: ignore[arg-type]
        assert "none, as the batches have no 'image'" in capsys.readouterr().out

    def test_without_scenes(self, tmp_path: Path) -> None:
        """One band, no reconstruction, no scene to lay features over."""
        samples = [{'image': torch.rand(1, 64, 64)} for _ in range(8)]
        trainer = make_trainer(tmp_path, PretrainingReport())
        task = make_task(1, reconstruction_branch=False)
        trainer.fit(task, DataLoader(samples, batch_size=4))
        assert (tmp_path / 'picture.png').exists()

    def test_nothing_trained(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = PretrainingReport()
        report.on_fit_end(make_trainer(tmp_path, report), make_task(3))
        assert not list(tmp_path.iterdir())
        assert not capsys.readouterr().out


class Wide(nn.Module):
    """Gives a map of many channels, of 16 px a cell."""

    def __init__(self, features: int) -> None:
        """One convolution with as many channels."""
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, features, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layer(x)
        return features


class Largest(TorchDispatchMode):
    """The largest tensor that any operation gives."""

    number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Look at what an operation gives."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                self.number = max(self.number, tensor.numel())
        return result


class TestPrincipalComponents:
    def test_halves_differ(self) -> None:
        """A scene of two grounds is coloured as two regions."""
        task = make_task(3).eval()
        scene = torch.randn(3, 96, 128) * 0.1
        scene[:, :, 64:] += 2
        colours = principal_components(task.student, scene, 64, shifts=4)
        assert colours.shape == (96, 128, 3)
        assert 0 <= colours.min() <= colours.max() <= 1
        left, right = colours[:, :48], colours[:, 80:]
        assert (left.mean((0, 1)) - right.mean((0, 1))).abs().max() > 0.3

    def test_one_window(self) -> None:
        """The components of its cells, up to their signs."""
        student, scene = Wide(32), torch.randn(3, 64, 64)
        with torch.no_grad():
            cells = student(scene[None])[0].flatten(1).T.double()  # (16, 32)
        covariance = np.cov(cells.T.numpy())
        vectors = torch.from_numpy(np.linalg.eigh(covariance)[1][:, :-4:-1].copy())
        components = ((cells - cells.mean(0)) @ vectors).view(4, 4, 3)
        components = components.repeat_interleave(16, 0).repeat_interleave(16, 1)
        low, high = components.flatten(0, 1).quantile(
            torch.tensor([0.02, 0.98]).double(), dim=0
        )
        expected = ((components - low) / (high - low)).clamp(0, 1).float()
        colours = principal_components(student, scene, 64)
        for i in range(3):
            error = min(
                (colours[..., i] - expected[..., i]).abs().max(),
                (colours[..., i] - 1 + expected[..., i]).abs().max(),
            )
            assert error < 1e-3

    def test_memory(self) -> None:
        """Regression: all channels were enlarged to the pixels of the scene."""
        with Largest() as largest:
            principal_components(Wide(512), torch.randn(3, 128, 128), 64, shifts=4)
        assert largest.number < 512 * 64 * 64 / 4


def test_draw_curves_of_nothing() -> None:
    assert not draw_curves({}).axes[0].lines


def test_smooth_curve() -> None:
    (axis,) = draw_curves({'loss': [float(i % 2) for i in range(40)]}).axes
    values, smooth = axis.lines
    assert len(values.get_xdata()) == 40
    assert set(smooth.get_ydata()) == {0.5}
    assert list(smooth.get_xdata()) == list(range(1, 40))
