# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The objective as the task computes it, and how it may be configured."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tasks.tiny import TINY
from torchgeo_cmid.tasks import CMID
from torchgeo_cmid.transforms import default_views

SMALL = TINY | {'model': 'resnet18'}


def make_task(**kwargs: Any) -> CMID:
    torch.manual_seed(0)
    task = CMID(**(SMALL | kwargs))
    in_channels = task.hparams['in_channels']
    task.views.augmentations = default_views(64, in_channels, unit=1.0)[0]
    return task


def draw(task: CMID, batch_size: int = 4, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    patches = torch.rand(batch_size, task.hparams['in_channels'], 64, 64)
    return task.views({'image': patches})


def losses_of(task: CMID, seed: int = 0) -> dict[str, Tensor]:
    return task.compute_losses(*draw(task, seed=seed), teacher_temperature=0.04)


class TestComputeLosses:
    @pytest.mark.parametrize(
        ('model', 'size', 'cell'),
        [
            ('resnet18', 96, 32),
            ('swin_tiny_patch4_window7_224', 64, 32),
            ('convnext_atto', 64, 32),
            ('vit_tiny_patch16_224', 96, 32),
            ('vit_tiny_patch16_224', 64, 16),
        ],
    )
    def test_backbones(self, model: str, size: int, cell: int) -> None:
        task = CMID(
            **(SMALL | {'model': model, 'size': size, 'mask_patch_size': cell}),
            in_channels=5,
        )
        task.views.augmentations = default_views(size, 5, unit=1.0)[0]
        patches = torch.rand(3, 5, 50, 50)
        views, masks, grids, _ = task.views({'image': patches})
        assert views[0].shape == (3, 5, size, size)
        assert masks[0].shape == (3, size // cell, size // cell)
        assert grids[0].shape == (3, *task.student.map_size, 2)
        losses = task.compute_losses(views, masks, grids, teacher_temperature=0.04)
        losses['loss'].backward()
        missing = [
            name
            for name, parameter in task.student.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        assert not missing
        assert all(p.grad is None for p in task.teacher.parameters())

    def test_parts_add_up(self) -> None:
        task = make_task(loss_weights=(0.5, 2, 3), frequency_weight=0.1)
        losses = losses_of(task)
        reconstruction = losses['spatial'] + 0.1 * losses['frequency']
        torch.testing.assert_close(losses['reconstruction'], reconstruction)
        total = 0.5 * reconstruction + 2 * losses['global'] + 3 * losses['local']
        torch.testing.assert_close(losses['loss'], total)

    @pytest.mark.parametrize(
        ('off', 'absent', 'heads'),
        [
            ({'global_branch': None}, {'global'}, {'projector'}),
            ({'local_branch': False}, {'local'}, {'prototype_head'}),
            ({'reconstruction_branch': False}, {'reconstruction'}, {'decoder'}),
        ],
    )
    def test_branch_off(
        self, off: dict[str, Any], absent: set[str], heads: set[str]
    ) -> None:
        task = make_task(**off)
        losses = losses_of(task)
        assert {'reconstruction', 'global', 'local'} - losses.keys() == absent
        assert not any(hasattr(task.student, head) for head in heads)
        losses['loss'].backward()

    def test_byol(self) -> None:
        task = make_task(global_branch='byol')
        assert not hasattr(task.contrastive, 'queue')
        assert 0 <= losses_of(task)['global'] <= 4
        assert any('predictor' in n for n, _ in task.student.named_parameters())
        assert not any('predictor' in n for n, _ in task.teacher.named_parameters())

    def test_queue_takes_the_second_keys_first(self) -> None:
        task = make_task()
        views, masks, grids, _ = draw(task)
        task.compute_losses(views, masks, grids, teacher_temperature=0.04)
        assert task.contrastive.queue_ptr.tolist() == [8]
        with torch.no_grad():
            keys = [
                nn.functional.normalize(
                    task.teacher.projector(task.teacher(view).mean(dim=(2, 3)))
                )
                for view in (views[1], views[0])
            ]
        torch.testing.assert_close(
            task.contrastive.queue[:, :8], torch.cat(keys).T, rtol=1e-4, atol=1e-5
        )

    def test_center_moves_after_each_direction(self) -> None:
        """The second direction is compared with the centre that the first has moved."""
        task = make_task()
        seen: list[Tensor] = []
        assign = task.distillation.assign

        def spy(teacher: Tensor, temperature: float, weight: Tensor) -> Tensor:
            seen.append(task.distillation.center.clone())
            return assign(teacher, temperature, weight)

        task.distillation.assign = spy  # type: ignore[method-assign]
        losses_of(task)
        assert (seen[0] == 0).all()
        assert (seen[1] != 0).any()
        assert not torch.equal(seen[1], task.distillation.center)

    def test_eval_updates_nothing(self) -> None:
        task = make_task()
        task.eval()
        before = {name: value.clone() for name, value in task.state_dict().items()}
        losses_of(task)
        for name, value in task.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_only_masked_cells_are_hidden(self) -> None:
        """The student does not see what is masked, the teacher does."""
        task = make_task(global_branch=None, local_branch=False)
        views, masks, *_ = draw(task)
        pixels = masks[0][:, None].repeat_interleave(16, 2).repeat_interleave(16, 3)
        # other values under the mask, the same mean of each band
        noise = torch.randn_like(views[0]) * pixels
        noise -= (
            noise.sum(dim=(2, 3), keepdim=True)
            / pixels.sum(dim=(2, 3), keepdim=True)
            * pixels
        )
        task.eval()
        first = task.student(views[0], masks[0])
        torch.testing.assert_close(
            first, task.student(views[0] + noise, masks[0]), rtol=1e-3, atol=1e-4
        )
        assert not torch.allclose(first, task.student(views[0]), atol=1e-3)

    def test_double_precision(self) -> None:
        task = make_task().double()
        views, masks, grids, _ = draw(task)
        views = (views[0].double(), views[1].double())
        losses = task.compute_losses(views, masks, grids, teacher_temperature=0.04)
        assert losses['loss'].dtype == torch.float64

    def test_autocast(self) -> None:
        task = make_task()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            losses = losses_of(task)
        assert torch.isfinite(losses['loss'])
        losses['loss'].backward()


class TestArguments:
    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            ({'size': 72}, 'size=72 must be a multiple of mask_patch_size=16'),
            ({'mask_ratio': 0}, 'mask_ratio=0 must be .* above 0 and at most 1'),
            ({'global_branch': 'simclr'}, "'simclr' must be 'moco', 'byol' or None"),
            ({'loss_weights': (1, 1)}, 'must be three numbers'),
            ({'model': 'resnet_18'}, "model='resnet_18' is not a timm model"),
            (
                {
                    'global_branch': None,
                    'local_branch': False,
                    'reconstruction_branch': False,
                },
                'are all off',
            ),
        ],
    )
    def test_refused(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_task(**arguments)

    def test_local_head_norm_by_backbone(self) -> None:
        heads = {
            model: make_task(model=model).student.prototype_head
            for model in ('resnet18', 'vit_tiny_patch16_224')
        }
        norms = {
            model: any(isinstance(m, nn.BatchNorm1d) for m in head.modules())
            for model, head in heads.items()
        }
        assert norms == {'resnet18': True, 'vit_tiny_patch16_224': False}

    def test_update_teacher(self) -> None:
        task = make_task()
        nn.init.ones_(task.student.backbone.conv1.weight)
        before = task.teacher.backbone.conv1.weight.clone()
        task.update_teacher(0.75)
        torch.testing.assert_close(
            task.teacher.backbone.conv1.weight, 0.75 * before + 0.25
        )

    def test_forward_is_the_pooled_embedding(self) -> None:
        assert make_task()(torch.rand(2, 3, 64, 64)).shape == (2, 512)

    def test_hyperparameters_are_plain(self) -> None:
        for value in make_task().hparams.values():
            assert value is None or isinstance(value, str | int | float | bool | tuple)

    def test_names_are_frozen(self) -> None:
        """The names that others build on, with their defaults (design, section 4)."""
        defaults = CMID.__init__.__kwdefaults__
        assert defaults == {
            'model': 'resnet50',
            'weights': None,
            'in_channels': 3,
            'size': 224,
            'mask_patch_size': 32,
            'mask_ratio': 0.6,
            'global_branch': 'moco',
            'local_branch': True,
            'reconstruction_branch': True,
            'loss_weights': (1, 1, 1),
            'frequency_weight': 1.0,
            'queue_size': None,
            'temperature': 0.2,
            'projection_dim': 256,
            'hidden_dim': 2048,
            'num_prototypes': None,
            'bottleneck_dim': 256,
            'local_head_norm': None,
            'num_matches': 20,
            'student_temperature': 0.1,
            'teacher_temperature': None,
            'warmup_teacher_temperature': 0.04,
            'warmup_teacher_temperature_epochs': None,
            'sharpness': None,
            'center_momentum': 0.9,
            'momentum': None,
            'final_momentum': 1.0,
            'optimizer': 'adan',
            'lr': None,
            'weight_decay': 0.02,
            'warmup_epochs': None,
            'min_lr': 1e-6,
            'augmentations': None,
            'recompute': True,
            'recipe': 'scaled',
        }
