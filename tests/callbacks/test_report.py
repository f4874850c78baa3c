# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The pictures of a finished run."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from matplotlib.image import imread
from torch.utils.data import DataLoader

from torchgeo_cmid.callbacks import PretrainingReport
from torchgeo_cmid.callbacks.report import draw_curves, principal_components
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


def make_trainer(tmp_path: Path, report: PretrainingReport) -> Trainer:
    return Trainer(
        default_root_dir=tmp_path,
        accelerator='cpu',
        logger=False,
        max_epochs=1,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[report],
    )


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

    def test_resumed_run_has_all_steps(self) -> None:
        report = PretrainingReport()
        report.curves = {'loss': [3.0, 2.0]}
        resumed = PretrainingReport()
        resumed.load_state_dict(report.state_dict())
        assert resumed.curves == {'loss': [3.0, 2.0]}

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


class TestPrincipalComponents:
    def test_halves_differ(self) -> None:
        """A scene of two grounds is coloured as two regions."""
        task = make_task(3).eval()
        scene = torch.randn(3, 96, 128) * 0.1
        scene[:, :, 64:] += 2
        colours = principal_components(task, scene, shifts=4)
        assert colours.shape == (96, 128, 3)
        assert 0 <= colours.min() <= colours.max() <= 1
        left, right = colours[:, :48], colours[:, 80:]
        assert (left.mean((0, 1)) - right.mean((0, 1))).abs().max() > 0.3


def test_draw_curves_of_nothing() -> None:
    assert not draw_curves({}).axes[0].lines
