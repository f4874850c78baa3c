# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Whole runs through TorchGeo's own command, on generated imagery."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torchgeo.datasets import SSL4EOS12
from torchgeo.main import main

from tests.data.eurosat100.data import generate as generate_eurosat100
from tests.data.geotiff.data import write_scene
from tests.data.ssl4eo_s12.data import generate as generate_ssl4eo_s12
from tests.trainers import quiet_trainer
from torchgeo_cmid import CMID, RasterFolderDataModule
from torchgeo_cmid.tasks.cmid import cmid
from torchgeo_cmid.transforms import Views

CONF = Path(__file__).parents[1] / 'conf'
GOLDEN_CURVE = CONF.parent / 'goldens' / 'loss_curve.json'


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two scenes of four bands in two CRSs."""
    folder = tmp_path / 'scenes'
    folder.mkdir()
    write_scene(folder / 'a.tif', bands=4, size=160, seed=0)
    write_scene(folder / 'b.tif', bands=4, size=160, crs='EPSG:32622', seed=1)
    return folder


def fit(*args: str, config: str = 'raster_folder') -> None:
    main(['fit', '--config', str(CONF / f'{config}.yaml'), *args])


def fit_scenes(folder: Path, *args: str) -> None:
    fit('--data.init_args.paths', str(folder), *args)


def log_of(version: int = 0) -> list[dict[str, str]]:
    path = Path('logs', 'lightning_logs', f'version_{version}', 'metrics.csv')
    with path.open() as file:
        return list(csv.DictReader(file))


def column(name: str, version: int = 0) -> list[float]:
    return [float(row[name]) for row in log_of(version) if row.get(name)]


def checkpoint_of(version: int = 0) -> Path:
    folder = Path('logs', 'lightning_logs', f'version_{version}', 'checkpoints')
    return next(folder.glob('*.ckpt'))


class TestRasterFolder:
    def test_what_a_run_leaves(self, scenes: Path) -> None:
        fit_scenes(scenes)
        run = Path('logs', 'lightning_logs', 'version_0')
        files = sorted(str(p.relative_to(run)) for p in run.rglob('*') if p.is_file())
        assert files == [
            'checkpoints/epoch=1-step=4.ckpt',
            'config.yaml',
            'hparams.yaml',
            'metrics.csv',
            'normalization.json',
        ]

        logged = set(log_of()[0])
        parts = ('reconstruction', 'spatial', 'frequency', 'global', 'local', 'loss')
        health = ('assignment_entropy', 'mean_assignment_entropy')
        for name in parts + health:
            assert {f'train_{name}', f'val_{name}'} <= logged
        assert {'lr', 'momentum', 'teacher_temperature', 'data_wait'} <= logged
        assert all(0 <= share <= 1 for share in column('data_wait'))
        assert all(0 <= share <= 1 for share in column('train_assignment_entropy'))
        assert all(1 <= rank <= 512 for rank in column('val_rank_me'))

        checkpoint = torch.load(checkpoint_of(), weights_only=True)  # plain values only
        assert checkpoint['hyper_parameters']['in_channels'] == 4
        assert not any('augmentations' in name for name in checkpoint['state_dict'])
        task = CMID.load_from_checkpoint(checkpoint_of())
        assert torch.equal(
            task.student.mask_token, checkpoint['state_dict']['student.mask_token']
        )

    def test_schedules(self, scenes: Path) -> None:
        """Four steps in two epochs, warmed up over the first."""
        recipe = '--model.init_args.recipe=published'
        fit_scenes(scenes, '--model.init_args.lr', '0.1', recipe)
        factors = [
            (1 + torch.cos(torch.pi * torch.tensor(n / 4))) / 2 for n in range(4)
        ]
        momentum = [1 - 0.004 * float(factor) for factor in factors]
        assert column('momentum') == pytest.approx(momentum)
        warmup = [0.01, 0.01 + 0.99 / 2, 1, 1]
        lr = [
            (1e-6 + (0.1 - 1e-6) * float(factor)) * warm
            for factor, warm in zip(factors, warmup, strict=True)
        ]
        assert column('lr') == pytest.approx(lr)
        assert column('teacher_temperature') == pytest.approx(
            [0.04, 0.04, 0.04 + 0.03 / 49, 0.04 + 0.03 / 49]
        )

    @pytest.mark.parametrize('warmup', ['0', '1', '10'])
    def test_lr_that_is_said_is_reached(
        self, scenes: Path, warmup: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level('INFO'):
            fit_scenes(scenes, f'--model.init_args.warmup_epochs={warmup}')
        said = [r.getMessage() for r in caplog.records if 'lr = ' in r.getMessage()]
        assert len(said) == 1
        rate, step = re.match(
            r'lr = (\S+) at most, in step (\d) of 4', said[0]
        ).groups()
        rates = column('lr')
        assert (
            max(rates) == rates[int(step) - 1] == pytest.approx(float(rate), rel=0.01)
        )

    def test_lr_of_a_finder_is_used(
        self, scenes: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level('INFO'):
            fit_scenes(
                scenes,
                '--model.init_args.warmup_epochs=0',
                '--trainer.callbacks+=LearningRateFinder',
                '--trainer.callbacks.num_training_steps=15',
                '--trainer.callbacks.max_lr=0.1',
                '--trainer.max_epochs=8',
            )
        said = ' '.join(record.getMessage() for record in caplog.records)
        rate = float(re.search(r'Learning rate set to (\S+)', said).group(1))
        halves = [(1 + math.cos(math.pi * n / 16)) / 2 for n in range(16)]
        used = [1e-6 + (rate - 1e-6) * half for half in halves]
        assert column('lr') == pytest.approx(used)
        assert f'lr = {rate:.3g} at most, in step 1 of 16, as was set' in said

    @pytest.mark.parametrize('validation', ['1.0', '0'])
    def test_finder_longer_than_the_run(
        self, scenes: Path, validation: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Regression: it came to a validation, and then no step was trained."""
        with caplog.at_level('INFO'):
            fit_scenes(
                scenes,
                '--model.init_args.warmup_epochs=0',
                '--trainer.callbacks+=LearningRateFinder',
                '--trainer.callbacks.num_training_steps=15',
                '--trainer.max_epochs=1',
                f'--trainer.limit_val_batches={validation}',
            )
        assert len(column('lr')) == 2
        said = [record.getMessage() for record in caplog.records]
        assert sum(line.startswith('views: ') for line in said) == 1

    def test_typed_lr_that_is_not_reached(
        self, scenes: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Regression: nothing was said of a warm-up that takes the whole run."""
        with caplog.at_level('INFO'):
            fit_scenes(
                scenes, '--model.init_args.lr=1e-3', '--model.init_args.warmup_epochs=2'
            )
        (line,) = [
            text
            for text in (record.getMessage() for record in caplog.records)
            if text.startswith('lr = ')
        ]
        assert line.endswith(': 0.001 is not reached, the warm-up takes 4 steps')
        assert f'lr = {max(column("lr")):.3g} at most, in step 3 of 4' in line

    def test_lr_of_a_run_that_is_made_longer(
        self, scenes: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Regression: its first step had the rate at the end of the shorter one."""
        fit_scenes(scenes)
        caplog.clear()
        with caplog.at_level('INFO'):
            fit_scenes(
                scenes, '--trainer.max_epochs=4', '--ckpt_path', str(checkpoint_of(0))
            )
        rates = column('lr', 1)
        assert rates == sorted(rates, reverse=True)
        (line,) = [
            text
            for text in (record.getMessage() for record in caplog.records)
            if text.startswith('lr = ')
        ]
        assert f'lr = {rates[0]:.3g} at most, in step 5 of 8' in line

    @pytest.mark.parametrize('precision', ['bf16-true', '16-true'])
    def test_half_throughout(self, scenes: Path, precision: str) -> None:
        mixed = precision.replace('true', 'mixed')
        with pytest.raises(ValueError, match=f'--trainer.precision {mixed}'):
            fit_scenes(scenes, f'--trainer.precision={precision}')

    @pytest.mark.parametrize(
        ('flags', 'expected'),
        [
            (['val_length=3'], 3),
            (['length=8'], 2),
            (['length=4'], 1),
            (['length=8', 'val_length=1'], 1),
        ],
    )
    def test_fewer_patches_to_validate(
        self,
        scenes: Path,
        flags: list[str],
        expected: int,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """As many as are asked for, or as small a share as is trained on."""
        seen: list[int] = []
        count = CMID.validation_step

        def spy(self: CMID, batch: Any, *args: Any) -> None:
            if not self.trainer.sanity_checking:
                seen.append(len(batch['image']))
            count(self, batch, *args)

        with pytest.MonkeyPatch.context() as patch, caplog.at_level('INFO'):
            patch.setattr(CMID, 'validation_step', spy)
            flags = [f'--data.init_args.{flag}' for flag in flags]
            fit_scenes(scenes, '--trainer.max_epochs=1', *flags)
        assert f', {sum(seen)} on 30% of the ground' in ' '.join(
            record.getMessage() for record in caplog.records
        )
        assert sum(seen) == expected

    def test_rules(self, scenes: Path, caplog: pytest.LogCaptureFixture) -> None:
        """What is left open follows from four steps, and is said with its reason."""
        with caplog.at_level('INFO'):
            fit_scenes(scenes)
        said = [record.getMessage() for record in caplog.records]
        assert 'momentum 0.5: 4 steps' in said
        assert 'sharpness 2: 4 steps' in said
        assert not any(line.startswith('queue_size') for line in said)  # it is typed
        assert column('momentum')[0] == 0.5
        spread, sharpness = column('train_logit_spread'), column('train_sharpness')
        assert sharpness == pytest.approx([2] * 4)
        assert column('teacher_temperature') == pytest.approx(
            [value / 2 for value in spread]
        )

    def test_recipe_published(
        self, scenes: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """All rules are set aside, and what would be decided is not said."""
        with caplog.at_level('INFO'):
            fit_scenes(scenes, '--model.init_args.recipe=published')
        assert not any('4 steps' in record.getMessage() for record in caplog.records)
        assert column('momentum')[0] == pytest.approx(0.996)
        assert column('teacher_temperature')[0] == pytest.approx(0.04)

    def test_resume_keeps_the_rules(
        self, scenes: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What was decided for two epochs holds when they become ten."""
        fit_scenes(scenes)
        begun = torch.load(checkpoint_of(0), weights_only=True)['rules']
        caplog.clear()
        with caplog.at_level('INFO'):
            fit_scenes(
                scenes, '--trainer.max_epochs=10', '--ckpt_path', str(checkpoint_of(0))
            )
        resumed = torch.load(checkpoint_of(1), weights_only=True)['rules']
        assert begun == resumed
        assert begun['momentum'] == 0.5  # ten epochs alone would have 0.54
        said = [record.getMessage() for record in caplog.records]
        assert not any(line.startswith(('momentum', 'sharpness')) for line in said)
        rest = [1 - 0.5 * (1 + math.cos(math.pi * n / 20)) / 2 for n in range(4, 20)]
        assert column('momentum', 1) == pytest.approx(rest)

    @pytest.mark.parametrize(
        ('rules', 'words'),
        [({'momentum': 2.0}, 'momentum=2.0'), ({'sharpness': 'os'}, 'sharpness=os')],
    )
    def test_rules_of_a_checkpoint_are_checked(
        self, scenes: Path, rules: dict[str, Any], words: str
    ) -> None:
        fit_scenes(scenes)
        checkpoint = torch.load(checkpoint_of(0), weights_only=True)
        path = scenes.parent / 'changed.ckpt'
        torch.save(checkpoint | {'rules': checkpoint['rules'] | rules}, path)
        with pytest.raises(ValueError, match=words):
            fit_scenes(scenes, '--trainer.max_epochs=3', '--ckpt_path', str(path))

    def test_open_sizes(self, scenes: Path) -> None:
        """Tensors keep the published size, of which the first columns are in use."""
        task = CMID(model='test_resnet', in_channels=4, size=64, mask_patch_size=16)
        assert task.contrastive.queue.shape == (256, 65536)
        before = task.contrastive.queue.clone()
        datamodule = RasterFolderDataModule(
            str(scenes), patch_size=48, batch_size=4, length=8
        )
        trainer = quiet_trainer(scenes.parent, max_epochs=3, limit_val_batches=0)
        trainer.fit(task, datamodule)
        assert task.settings['queue_size'] == task.contrastive.in_use == 8
        assert task.settings['num_prototypes'] == task.distillation.in_use == 256
        assert torch.equal(task.contrastive.queue[:, 8:], before[:, 8:])
        changed = (task.contrastive.queue != before).any(dim=0)
        assert changed[:8].all()
        # 6 steps of 8 keys: the pointer has gone round six times
        assert task.contrastive.queue_ptr.item() == 0
        assert (task.distillation.center[256:] == 0).all()
        assert (task.distillation.center[:256] != 0).all()

    def test_learning_rate_follows_the_batch(self, scenes: Path) -> None:
        fit_scenes(scenes, '--trainer.accumulate_grad_batches', '2')
        # 2 x 4 patches; two steps, the first of them warms up to the end
        assert column('lr')[0] == pytest.approx(0.01 * 0.00625 * (8 / 256) ** 0.5)

    def test_teacher_follows_after_the_step(self, scenes: Path) -> None:
        """After one step the teacher is m of the start and 1 - m of the student."""
        fit_scenes(
            scenes, '--trainer.max_steps', '1', '--model.init_args.momentum', '0'
        )
        state = torch.load(checkpoint_of(), weights_only=True)['state_dict']
        name = 'backbone.layer1.0.conv1.weight'
        assert torch.equal(state[f'teacher.{name}'], state[f'student.{name}'])

    def test_resume(self, scenes: Path) -> None:
        """The schedules of a run that was stopped half-way go on where it was."""
        fit_scenes(scenes, '--trainer.max_epochs', '2')
        whole = torch.load(checkpoint_of(0), weights_only=True)

        class Stop(Exception):
            pass

        hook = CMID.on_train_epoch_start
        with pytest.MonkeyPatch.context() as patch:

            def stop(task: CMID) -> None:
                if task.current_epoch == 1:
                    raise Stop
                hook(task)

            patch.setattr(CMID, 'on_train_epoch_start', stop)
            with pytest.raises(Stop):
                fit_scenes(scenes, '--trainer.max_epochs', '2')
        fit_scenes(
            scenes, '--trainer.max_epochs', '2', '--ckpt_path', str(checkpoint_of(1))
        )
        resumed = torch.load(checkpoint_of(2), weights_only=True)
        assert column('lr', 0) == pytest.approx(column('lr', 1) + column('lr', 2))
        assert column('momentum', 0) == pytest.approx(
            column('momentum', 1) + column('momentum', 2)
        )
        assert whole['global_step'] == resumed['global_step'] == 4
        assert whole['lr_schedulers'] == resumed['lr_schedulers']
        optimizers = whole['optimizer_states'], resumed['optimizer_states']
        rates = [[group['lr'] for group in o[0]['param_groups']] for o in optimizers]
        assert rates[0] == rates[1]

    def test_validation_is_on_fixed_views(self, scenes: Path) -> None:
        """With a learning rate of 0 every epoch validates alike."""
        fit_scenes(
            scenes,
            '--model.init_args.optimizer=sgd',
            '--model.init_args.lr=1e-30',
            '--model.init_args.min_lr=0',
            '--model.init_args.min_lr=0',
            '--model.init_args.local_branch=false',
            '--model.init_args.global_branch=byol',
            '--model.init_args.model=vit_tiny_patch16_224',
        )
        first, second = column('val_reconstruction')
        assert first == second

    def test_reproducible(self, scenes: Path) -> None:
        fit_scenes(scenes)
        fit_scenes(scenes)
        fit_scenes(scenes, '--seed_everything', '1')
        assert column('train_loss', 0) == column('train_loss', 1)
        assert column('train_loss', 0) != column('train_loss', 2)

    def test_alias(self, scenes: Path) -> None:
        fit_scenes(scenes, '--model.class_path', 'CMID', '--trainer.fast_dev_run', '1')

    @pytest.mark.slow
    def test_golden_curve(self, scenes: Path) -> None:
        """Twenty steps in double precision: the first ten to 1e-3."""
        torch.set_num_threads(1)
        fit_scenes(
            scenes,
            '--model.init_args.model=resnet18',
            '--model.init_args.recipe=published',
            '--trainer.max_epochs=10',
            '--trainer.precision=64-true',
        )
        curve = column('train_loss')
        assert len(curve) == 20
        golden = json.loads(GOLDEN_CURVE.read_text())
        assert curve[:10] == pytest.approx(golden[:10], rel=1e-3)


class Identity(nn.Module):
    """Augmentations that leave the patches alone."""

    def forward(self, images: Any) -> Any:
        transform = torch.eye(3).expand(len(images[0]), 3, 3)
        return images, (transform, transform)


class TestStockDataModules:
    def fit(self, name: str, root: Path, *args: str) -> None:
        fit(
            '--data.class_path',
            name,
            f'--data.dict_kwargs.root={root}',
            *args,
            config='stock',
        )

    def test_eurosat100(self, tmp_path: Path) -> None:
        generate_eurosat100(tmp_path / 'eurosat')
        self.fit('EuroSAT100DataModule', tmp_path / 'eurosat')
        assert len(column('train_loss')) == 2
        assert len(column('val_loss')) == 1

    def test_ssl4eo_s12(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two seasons of 13 bands in one image become the two views."""
        generate_ssl4eo_s12(tmp_path / 'ssl4eo')
        monkeypatch.setattr(SSL4EOS12, '__len__', lambda self: 4)
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        draw = Views.forward

        def spy(views: Views, images: Any, valid: Any = None) -> Any:
            seen.append(images)
            return draw(views, images, valid)

        monkeypatch.setattr(Views, 'forward', spy)
        self.fit(
            'SSL4EOS12DataModule',
            tmp_path / 'ssl4eo',
            '--data.dict_kwargs.seasons=2',
            '--data.init_args.batch_size=2',
            '--trainer.limit_val_batches=0',
        )
        assert seen[0][0].shape[1] == seen[0][1].shape[1] == 13
        assert not torch.equal(*seen[0])
        assert len(column('train_loss')) == 2

    def test_wrong_bands(self, tmp_path: Path) -> None:
        generate_eurosat100(tmp_path / 'eurosat')
        with pytest.raises(
            ValueError, match='DataModule gives 13 bands: in_channels=3'
        ):
            self.fit(
                'EuroSAT100DataModule',
                tmp_path / 'eurosat',
                '--model.init_args.in_channels=3',
            )

    def test_custom_augmentations(self) -> None:
        task = cmid(model='resnet18', size=64, queue_size=16, augmentations=Identity())
        patches = torch.rand(2, 3, 64, 64)
        views, _, grids, _ = task.views({'image': patches})
        assert torch.equal(views[0], patches)
        assert grids[0][0, 0, 0].tolist() == [15.5, 15.5]


class TestBadInput:
    def test_in_channels_disagree(self, scenes: Path) -> None:
        message = 'in_channels=3 of the model, but RasterFolderDataModule gives 4 bands'
        with pytest.raises(ValueError, match=message):
            fit_scenes(scenes, '--model.init_args.in_channels=3')

    def test_global_batch_of_one(self, scenes: Path) -> None:
        with pytest.raises(ValueError, match='a global batch of one patch'):
            fit_scenes(scenes, '--data.init_args.batch_size=1')

    def test_last_batch_of_one(self) -> None:
        task = cmid(model='resnet18', size=64, queue_size=16)
        batch = {'image': torch.rand(1, 3, 64, 64)}
        with pytest.raises(ValueError, match='drop the last batch'):
            task.training_step(batch, 0)  # type: ignore[arg-type]

    def test_loader_without_batch_size(self) -> None:
        task = cmid(model='resnet18', size=64, queue_size=16)
        trainer = Trainer(
            logger=False, max_epochs=1, enable_progress_bar=False, accelerator='cpu'
        )
        loader = torch.utils.data.DataLoader([torch.zeros(1)] * 2, batch_size=None)
        with pytest.raises(ValueError, match='DataLoader has no batch_size'):
            trainer.fit(task, loader)

    def test_run_without_end(self, scenes: Path) -> None:
        with pytest.raises(ValueError, match='set max_epochs or max_steps'):
            fit_scenes(scenes, '--trainer.max_epochs=-1')

    def test_steps_without_epochs(self, scenes: Path) -> None:
        """Regression: the warm-up's epochs were counted before the loader was known."""
        fit_scenes(scenes, '--trainer.max_epochs=-1', '--trainer.max_steps=3')
        assert column('train_loss')

    def test_loader_without_length(self) -> None:
        class Endless(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
            def __iter__(self) -> Any:
                while True:
                    yield {'image': torch.rand(3, 64, 64)}

        trainer = Trainer(max_steps=3, logger=False, enable_checkpointing=False)
        loader = torch.utils.data.DataLoader(Endless(), batch_size=2)
        with pytest.raises(ValueError, match='limit_train_batches to a number'):
            trainer.fit(cmid(model='resnet18', size=64, queue_size=16), loader)

    def test_long_queue(self, scenes: Path) -> None:
        with pytest.warns(UserWarning, match='queue_size=64 holds more keys than'):
            fit_scenes(scenes, '--model.init_args.queue_size=64')

    @pytest.mark.parametrize(
        ('entropies', 'message'),
        [((0.999, 0.999), 'gone uniform'), ((0.01, 0.05), 'has collapsed')],
    )
    def test_degenerate_assignments(
        self, scenes: Path, entropies: tuple[float, float], message: str
    ) -> None:
        compute_losses = CMID.compute_losses

        def degenerate(task: CMID, *args: Any, **kwargs: Any) -> Any:
            losses = compute_losses(task, *args, **kwargs)
            names = ('assignment_entropy', 'mean_assignment_entropy')
            values = map(torch.tensor, entropies)
            return losses | dict(zip(names, values, strict=True))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CMID, 'compute_losses', degenerate)
            with pytest.warns(UserWarning, match=message):
                fit_scenes(scenes, '--trainer.max_steps=1')

    def test_collapse(self, scenes: Path) -> None:
        """Features that are the same for every patch."""
        forward = CMID.forward

        def constant(task: CMID, x: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(forward(task, x))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CMID, 'forward', constant)
            with pytest.warns(UserWarning, match='the features have collapsed'):
                fit_scenes(  # a longer epoch has more validation patches
                    scenes, '--trainer.max_epochs=1', '--data.init_args.length=64'
                )


class TestWeights:
    def test_from_a_checkpoint(self, scenes: Path, tmp_path: Path) -> None:
        fit_scenes(scenes)
        fit_scenes(
            scenes,
            f'--model.init_args.weights={checkpoint_of(0)}',
            '--model.init_args.lr=1e-30',
            '--model.init_args.min_lr=0',
            '--trainer.max_steps=1',
        )
        first, second = (
            torch.load(checkpoint_of(version), weights_only=True)['state_dict']
            for version in (0, 1)
        )
        name = 'student.backbone.layer4.0.conv2.weight'
        torch.testing.assert_close(first[name], second[name])

    def test_from_a_state_dict(self, tmp_path: Path) -> None:
        source = cmid(model='resnet18', size=64, queue_size=16)
        path = tmp_path / 'backbone.pt'
        torch.save(source.student.backbone.state_dict(), path)
        task = cmid(model='resnet18', size=64, queue_size=16, weights=str(path))
        for network in (task.student, task.teacher):
            assert torch.equal(
                network.backbone.conv1.weight, source.student.backbone.conv1.weight
            )

    def test_something_else(self, tmp_path: Path) -> None:
        arguments: dict[str, Any] = {'model': 'resnet18', 'size': 64, 'queue_size': 16}
        with pytest.raises(
            ValueError, match="'nothing' is neither a file nor a weight"
        ):
            cmid(weights='nothing', **arguments)
        other = {'state_dict': {'a': torch.zeros(1)}, 'hyper_parameters': {}}
        torch.save(other, tmp_path / 'other.ckpt')
        with pytest.raises(ValueError, match=r'other\.ckpt.*no checkpoint of CMID'):
            cmid(weights=str(tmp_path / 'other.ckpt'), **arguments)
        torch.save({'fc.weight': torch.zeros(1)}, tmp_path / 'fc.pt')
        with pytest.raises(
            ValueError, match=r'fc\.pt.* 1 tensors \(fc\.weight, .*conv1'
        ):
            cmid(weights=str(tmp_path / 'fc.pt'), **arguments)


def test_steps_without_lightning_cli() -> None:
    """Test and predict are open for what later callbacks do."""
    task: LightningModule = cmid(model='resnet18', size=64, queue_size=16)
    loader = torch.utils.data.DataLoader([{'image': torch.rand(3, 64, 64)}] * 2)
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator='cpu')
    trainer.test(task, loader)
    trainer.predict(task, loader)


class TestGivenOptimizer:
    def test_schedule_alone(self, scenes: Path) -> None:
        """Regression: it was ignored without a word."""
        with pytest.raises(ValueError, match='--lr_scheduler goes with --optimizer'):
            fit_scenes(scenes, '--lr_scheduler=StepLR', '--lr_scheduler.step_size=1')

    """Regression: the teacher stayed at its random weights, momentum 1 throughout."""

    @pytest.mark.parametrize(
        'arguments',
        [
            ['--optimizer=AdamW', '--optimizer.lr=0.001'],
            [
                '--optimizer=SGD',
                '--optimizer.lr=0.01',
                '--lr_scheduler=ExponentialLR',
                '--lr_scheduler.gamma=0.5',
            ],
        ],
    )
    def test_teacher_keeps_its_schedule(
        self, scenes: Path, arguments: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level('INFO'):
            fit_scenes(scenes, '--model.init_args.momentum=0.996', *arguments)
        factors = [
            (1 + torch.cos(torch.pi * torch.tensor(n / 4))) / 2 for n in range(4)
        ]
        assert column('momentum') == pytest.approx(
            [1 - 0.004 * float(factor) for factor in factors]
        )
        assert column('lr')[0] == pytest.approx(float(arguments[1].split('=')[1]))
        state = torch.load(checkpoint_of(), weights_only=True)['state_dict']
        assert not torch.equal(
            state['teacher.backbone.conv1.0.weight'],
            state['student.backbone.conv1.0.weight'],
        )
        said = [r.getMessage() for r in caplog.records]
        assert sum('the optimizer is the one that was given' in s for s in said) == 1
        assert not any(s.startswith('lr = ') for s in said)  # it is not used

    def test_of_a_subclass(self, scenes: Path) -> None:
        class Own(CMID):
            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.student.parameters(), lr=0.1)

        task = Own(model='resnet18', in_channels=4, size=64, queue_size=16)
        datamodule = RasterFolderDataModule(
            str(scenes), patch_size=64, batch_size=4, length=8
        )
        trainer = quiet_trainer(scenes.parent, max_epochs=2, limit_val_batches=0)
        before = task.teacher.backbone.conv1.weight.clone()
        trainer.fit(task, datamodule)
        assert task.schedules.total_steps == 4
        assert not torch.equal(task.teacher.backbone.conv1.weight, before)
