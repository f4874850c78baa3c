# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Numbers stay finite; where they do not, the run stops and keeps the batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from tests.tasks.tiny import TINY
from tests.trainers import quiet_trainer
from torchgeo_cmid.runs.finite import require_finite
from torchgeo_cmid.tasks import CMID
from torchgeo_cmid.transforms import MultispectralPhotometric, Views

SMALL = TINY | {'in_channels': 4}


def hard_patches() -> dict[str, Tensor]:
    torch.manual_seed(0)
    noise = torch.randn(3, 4, 64, 64)
    return {
        'zero': torch.zeros_like(noise),
        'constant': torch.full_like(noise, 3),
        'saturated': 255 * (noise > 0).float(),
        'fill': noise,
        'digital numbers': 1e4 * noise.abs(),
        'huge': 1e30 * noise,
        'largest': torch.full_like(noise, torch.finfo(torch.float32).max),
    }


class TestHardPatches:
    @pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize(
        ('model', 'branch'),
        [('test_resnet', 'moco'), ('convnext_atto', 'byol'), ('test_vit', 'moco')],
    )
    def test_finite(self, model: str, branch: Any, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        task = CMID(**SMALL, model=model, global_branch=branch)
        views = Views(64, MultispectralPhotometric(4))
        task.views.augmentations = views
        for name, image in hard_patches().items():
            batch: Any = {'image': image}
            if name == 'fill':
                batch['valid'] = torch.zeros(3, 1, 64, 64, dtype=torch.bool)
            task.zero_grad()
            with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
                losses = task.compute_losses(
                    *task.views(batch), teacher_temperature=0.04
                )
            losses['loss'].backward()
            values = losses | dict(task.named_buffers())
            values |= {n: p.grad for n, p in task.student.named_parameters()}
            bad = [
                n for n, v in values.items() if v is not None and not v.isfinite().all()
            ]
            assert not bad, f'{name}: {bad}'

    def test_constant_patch_leaves_the_others_their_gradient(self) -> None:
        """It adds none of its own to the backbone's."""
        torch.manual_seed(0)
        student = CMID(**SMALL, model='convnext_atto').student.double()
        views = torch.randn(2, 4, 64, 64, dtype=torch.float64)
        masks = torch.rand(2, 4, 4) < 0.6
        gradients = []
        for last in (1, 2):
            views[1] = 0
            student.zero_grad()
            student(views[:last], masks[:last]).square().sum().backward()
            gradients.append(student.backbone.stem[0].weight.grad.clone())
        torch.testing.assert_close(*gradients)


class TestStop:
    def fit(self, images: Tensor, tmp_path: Path, **kwargs: Any) -> CMID:
        torch.manual_seed(0)
        task = CMID(**SMALL, model='test_vit', lr=1e-3)
        task.hparams.update(kwargs)
        trainer = quiet_trainer(tmp_path)
        samples: Any = [{'image': x, 'index': i} for i, x in enumerate(images)]
        before = [p.detach().clone() for p in task.parameters()]
        with pytest.raises(ValueError, match='loss is not finite at step 0') as info:
            trainer.fit(task, DataLoader(samples, batch_size=4))
        assert all(map(torch.equal, before, task.parameters()))
        self.message = str(info.value)
        return task

    def test_stops_before_the_step_and_saves_the_batch(self, tmp_path: Path) -> None:
        images = torch.randn(4, 4, 64, 64)
        images[2, 1, 32, 32] = torch.nan
        self.fit(images, tmp_path)
        path = tmp_path / 'non_finite_loss_step=0_rank=0.pt'
        assert str(path) in self.message
        assert 'the images hold NaN or infinity' in self.message
        report = torch.load(path, weights_only=True)
        torch.testing.assert_close(report['image'], images, equal_nan=True)
        assert report['index'].tolist() == [0, 1, 2, 3]
        assert 'spatial=nan' in self.message

        content = path.read_bytes()
        self.fit(images, tmp_path)
        assert path.read_bytes() == content
        assert path.with_stem(f'{path.stem}_1').exists()

    def test_not_the_data(self, tmp_path: Path) -> None:
        self.fit(torch.randn(4, 4, 64, 64), tmp_path, loss_weights=(torch.inf, 1, 1))
        assert 'the images are finite: lower lr' in self.message

    def test_folder_that_can_not_be_written(self, tmp_path: Path) -> None:
        folder = tmp_path / 'file'
        folder.touch()
        self.fit(torch.full((4, 4, 64, 64), torch.inf), folder)
        assert 'the batch could not be saved in' in self.message

    def test_another_process(self, tmp_path: Path) -> None:
        """All processes stop, not only the one that has the batch."""
        trainer = Trainer(default_root_dir=tmp_path, logger=False, accelerator='cpu')
        losses, mean = {'loss': torch.zeros(())}, torch.tensor(torch.nan)
        with pytest.raises(ValueError, match='the loss of another process'):
            require_finite(trainer, losses, mean, {})
        assert not list(tmp_path.iterdir())
