# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What reaches the first convolution is what the weights were trained on."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, Timer
from torch import Tensor
from torchgeo import datamodules
from torchgeo.tasks import (
    ChangeDetection,
    Classification,
    MoCo,
    ObjectDetection,
    SemanticSegmentation,
)

from tests.data.transfer.data import GENERATE
from tests.trainers import quiet_trainer
from torchgeo_cmid.callbacks import PixelContract
from torchgeo_cmid.callbacks.pixel_contract import KEY
from torchgeo_cmid.models import export_backbone
from torchgeo_cmid.models.architectures import MEAN, STD
from torchgeo_cmid.models.normalization import Pixels, find_normalizations
from torchgeo_cmid.tasks import CMID, CMIDObjectDetection

RGB = Pixels((90.0, 95.0, 80.0), (50.0, 45.0, 40.0), 255.0, ('R', 'G', 'B'))
#: Of all of Sentinel-2's bands, as EuroSAT has them.
S2 = Pixels(
    tuple(1000.0 + 50 * i for i in range(13)),
    tuple(300.0 + 20 * i for i in range(13)),
    10_000.0,
)
#: Before version 0.2, or of 16-bit files: mean and std, but of what unit?
UNKNOWN = Pixels(RGB.mean, RGB.std)
PUBLISHED = Pixels(
    tuple(255 * mean for mean in MEAN), tuple(255 * std for std in STD), 255.0
)


def own_checkpoint(path: Path, pixels: Pixels, model: str = 'resnet18') -> Path:
    """A checkpoint of ours."""
    channels = len(pixels.mean)
    task = CMID(model=model, in_channels=channels, size=64, queue_size=4, hidden_dim=8)
    arguments = {'model': model, 'in_channels': channels, 'size': 64}
    content = {'state_dict': task.state_dict(), 'hyper_parameters': arguments}
    torch.save(content | {'pixels': pixels.to_state()}, path)
    return path


#: How weights are given: what they were trained on, and what makes them.
WAYS: dict[str, tuple[Pixels, Callable[[Path], str]]] = {
    'published': (PUBLISHED, lambda folder: 'cmid_resnet50'),
    'checkpoint': (RGB, lambda folder: str(own_checkpoint(folder / 'a.ckpt', RGB))),
    'export': (RGB, lambda folder: exported(folder, RGB)),
    'other bands': (S2, lambda folder: str(own_checkpoint(folder / 'b.ckpt', S2))),
    'unknown unit': (
        UNKNOWN,
        lambda folder: str(own_checkpoint(folder / 'c.ckpt', UNKNOWN)),
    ),
}


def exported(folder: Path, pixels: Pixels) -> str:
    path = folder / 'backbone.safetensors'
    if not path.exists():
        export_backbone(own_checkpoint(folder / 'd.ckpt', pixels), path)
    return str(path)


def classification(**kwargs: Any) -> LightningModule:
    return Classification(num_classes=3, **kwargs)


def segmentation(model: str, **kwargs: Any) -> LightningModule:
    return SemanticSegmentation(model='unet', backbone=model, num_classes=3, **kwargs)


def siamese(model: str, **kwargs: Any) -> LightningModule:
    return ChangeDetection(model='fcsiamdiff', backbone=model, **kwargs)


def stacked(model: str, **kwargs: Any) -> LightningModule:
    return ChangeDetection(model='unet', backbone=model, **kwargs)


def contrastive(**kwargs: Any) -> LightningModule:
    return MoCo(version=2, layers=2, size=64, **kwargs)


def detection(model: str, **kwargs: Any) -> LightningModule:
    return CMIDObjectDetection(backbone=model, num_classes=3, **kwargs)


def stock_detection(model: str, **kwargs: Any) -> LightningModule:
    return ObjectDetection(backbone=model, num_classes=3, **kwargs)


def pretraining(**kwargs: Any) -> LightningModule:
    return CMID(size=64, queue_size=4, hidden_dim=8, **kwargs)


TASKS = {
    task.__name__: task
    for task in (
        classification,
        segmentation,
        siamese,
        stacked,
        contrastive,
        detection,
        stock_detection,
        pretraining,
    )
}

#: Data modules, their bands, and the raw number that stands for 1.
DATA: dict[str, tuple[Callable[[], Any], int, float]] = {
    'ucmerced': (datamodules.UCMercedDataModule, 3, 255.0),
    'resisc45': (datamodules.RESISC45DataModule, 3, 255.0),
    'potsdam': (datamodules.Potsdam2DDataModule, 4, 255.0),
    'vaihingen': (datamodules.Vaihingen2DDataModule, 3, 255.0),
    'levircd': (datamodules.LEVIRCDDataModule, 3, 255.0),
    'vhr10': (datamodules.VHR10DataModule, 3, 255.0),
    'eurosat': (datamodules.EuroSATDataModule, 13, 10_000.0),
    'eurosat rgb': (
        lambda: datamodules.EuroSATDataModule(bands=('B04', 'B03', 'B02')),
        3,
        10_000.0,
    ),
    'oscd': (datamodules.OSCDDataModule, 13, 10_000.0),
    'ssl4eo': (datamodules.SSL4EOS12DataModule, 13, 10_000.0),
}

#: Data modules that standardise by statistics of their own.
STANDARDISED = ('resisc45', 'eurosat', 'eurosat rgb', 'oscd')


def why_missing(task: str, way: str, data: str) -> str:
    """Why a cell of the table is empty."""
    bands, known = DATA[data][1], len(WAYS[way][0].mean)
    dates = task in ('siamese', 'stacked')
    if dates != (data in ('levircd', 'oscd')):
        return 'two dates are for change detection'
    if task.endswith('detection') != (data == 'vhr10'):
        return 'boxes are for detection'
    if task == 'detection' and way != 'published':
        return 'its backbones are the published ones'
    if way != 'published' and bands != known:
        return f'the weights have {known} bands, the data {bands}'
    if task == 'stacked' and (way != 'published' or data == 'levircd'):
        return 'a stem for stacked dates is made by models of ours alone'
    if task in ('contrastive', 'pretraining') and way == 'published' and bands != 3:
        return 'TorchGeo makes another stem random; ours has a test of its own'
    return ''


def run(task: LightningModule, datamodule: Any, **kwargs: Any) -> PixelContract:
    """What happens before the first batch."""
    contract = PixelContract(**kwargs)
    trainer: Any = SimpleNamespace(datamodule=datamodule)
    contract.setup(trainer, task, 'fit')
    contract.settle(trainer, task, 'fit')
    return contract


def standardise(datamodule: Any, raw: Tensor) -> Tensor:
    """What the data module makes of raw pixels, by its own augmentation."""
    augmentation = datamodule.train_aug or datamodule.aug
    for module in augmentation.modules():
        if type(module).__name__ == 'Normalize':
            mean, std = (
                module.flags[name].flatten().double() for name in ('mean', 'std')
            )
            raw = (raw - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    return raw


def seen(task: LightningModule, image: Tensor) -> list[Tensor]:
    """What the first convolution of each backbone is given."""
    results = []
    for name, hook in find_normalizations(task).items():
        assert not hook.pixels.keeps_standardised or hook.decided
        (value,) = hook(task.get_submodule(name), (image,))
        results.append(value)
    return results


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('weights')


@pytest.mark.slow
@pytest.mark.parametrize('data', DATA)
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('task', TASKS)
def test_pixels_at_the_first_convolution(
    task: str, way: str, data: str, folder: Path, published: Path
) -> None:
    """Those of pre-training where the unit is the same, else those of the module."""
    reason = why_missing(task, way, data)
    if reason:
        pytest.skip(reason)
    pixels, make = WAYS[way]
    create, bands, unit = DATA[data]
    models = ['cmid_resnet50', 'resnet50'] if way == 'published' else ['resnet18']
    if task in ('contrastive', 'stock_detection', 'pretraining'):
        models = models[-1:]
    elif bands != 3 and way == 'published':
        models = models[:1]  # TorchGeo makes a random stem for resnet50
    elif task == 'detection':
        models = models[:1]
    for model in models:
        made = TASKS[task](model=model, weights=make(folder), in_channels=bands)
        datamodule = create()
        run(made, datamodule)
        torch.manual_seed(0)
        raw = unit * torch.rand(2, bands, 8, 8, dtype=torch.float64)
        given = standardise(datamodule, raw)
        results = seen(made, torch.cat([given] * (1 + (task == 'stacked')), dim=1))
        assert len(results) == (2 if task == 'contrastive' else 1)
        mean, std = (x.view(-1, 1, 1) for x in pixels.spread(bands))
        own = unit == pixels.unit
        if way == 'published' and data in STANDARDISED:
            own = False
        expected = (raw - mean) / std if own else given
        for result in results:
            for date in result.split(bands, dim=1):
                torch.testing.assert_close(date, expected, rtol=1e-5, atol=1e-5)


def test_plain_timm_is_told(folder: Path) -> None:
    """Plain Python runs nothing of ours, so mean and std are where timm keeps them."""
    task: Any = classification(model='resnet18', weights=WAYS['checkpoint'][1](folder))
    assert task.model.pretrained_cfg['mean'] == pytest.approx(
        [mean / 255 for mean in RGB.mean]
    )
    assert task.model.pretrained_cfg['std'] == pytest.approx(
        [std / 255 for std in RGB.std]
    )


def test_other_weights_are_left_alone() -> None:
    task = Classification(model='resnet18', num_classes=3)
    run(task, datamodules.RESISC45DataModule())
    assert not find_normalizations(task)


def test_published_weights_for_more_bands(published: Path) -> None:
    """A stem made of RGB's filters gets RGB's statistics, and their mean elsewhere."""
    task = Classification(
        model='cmid_resnet50', weights='cmid_resnet50', in_channels=4, num_classes=3
    )
    run(task, datamodules.Potsdam2DDataModule())
    (result,) = seen(task, torch.full((1, 4, 2, 2), 0.5, dtype=torch.float64))
    expected = [(0.5 - m) / s for m, s in zip(MEAN, STD, strict=True)]
    expected.append((0.5 - sum(MEAN) / 3) / (sum(STD) / 3))
    assert result[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)


class TestUnknown:
    """Where it cannot be read what was done, an argument is required."""

    @pytest.fixture
    def task(self, folder: Path) -> LightningModule:
        return Classification(
            model='resnet18', weights=WAYS['checkpoint'][1](folder), num_classes=3
        )

    def test_no_data_module(self, task: LightningModule) -> None:
        with pytest.raises(
            ValueError, match=r'resnet18 has to know.*no data module.*PixelContract'
        ):
            run(task, None)

    def test_no_normalize(self, task: LightningModule) -> None:
        datamodule = datamodules.GeoNRWDataModule()
        with pytest.raises(ValueError, match='GeoNRWDataModule normalises nothing'):
            run(task, datamodule)
        run(task, datamodule, unit=255)
        (result,) = seen(task, torch.full((1, 3, 2, 2), 128.0))
        expected = [(128 - m) / s for m, s in zip(RGB.mean, RGB.std, strict=True)]
        assert result[0, :, 0, 0].tolist() == pytest.approx(expected)

    @pytest.mark.parametrize(
        ('arguments', 'scale'),
        [
            ({'mean': [0.0], 'std': [255.0], 'unit': 255}, 255.0),
            ({'normalize': True}, 255.0),
            ({'normalize': True, 'unit': 100.0}, 2.55),
            ({'normalize': False}, None),
        ],
    )
    def test_arguments(
        self, task: LightningModule, arguments: dict[str, Any], scale: float | None
    ) -> None:
        run(task, None, **arguments)
        x = torch.rand(1, 3, 4, 4)
        (result,) = seen(task, x)
        if scale is None:
            assert torch.equal(result, x)
            return
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (RGB.mean, RGB.std))
        torch.testing.assert_close(result, (scale * x - mean) / std)

    def test_refused_arguments(self) -> None:
        with pytest.raises(ValueError, match='mean and std go together'):
            PixelContract(mean=[0.0])
        with pytest.raises(ValueError, match='unit=-1 must be a number above 0'):
            PixelContract(unit=-1)


class TestRuns:
    """Whole runs of a stock task on generated UC Merced."""

    @pytest.fixture(scope='class')
    def root(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp('ucmerced')
        GENERATE['ucmerced'](root)
        return root

    def make(self, root: Path, tmp_path: Path, **kwargs: Any) -> tuple[Any, ...]:
        torch.manual_seed(0)
        tmp_path.mkdir(exist_ok=True)
        weights = kwargs.pop('weights', str(own_checkpoint(tmp_path / 'a.ckpt', RGB)))
        task = Classification(
            model='resnet18', weights=weights, num_classes=21, **kwargs
        )
        datamodule = datamodules.UCMercedDataModule(root=root, batch_size=2)
        trainer = quiet_trainer(tmp_path, enable_checkpointing=True)
        return task, datamodule, trainer

    def test_said_kept_and_obeyed(
        self, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        task, datamodule, trainer = self.make(root, tmp_path)
        with caplog.at_level('INFO'):
            trainer.fit(task, datamodule)
        said = [r.getMessage() for r in caplog.records if 'pixels of' in r.getMessage()]
        assert len(said) == 1
        assert 'UCMercedDataModule has done is undone' in said[0]
        trainer.save_checkpoint(tmp_path / 'last.ckpt')
        content = torch.load(tmp_path / 'last.ckpt', weights_only=True)  # plain values
        assert [*content[KEY]] == ['model.conv1']

        # in plain Python, without the weights it started from
        again = Classification.load_from_checkpoint(tmp_path / 'last.ckpt').eval()
        for x in (torch.randn(2, 3, 64, 64), 9 * torch.rand(1, 3, 64, 64)):
            torch.testing.assert_close(again(x), task.eval()(x))
        compiled = torch.compile(again, backend='eager')
        torch.testing.assert_close(compiled(x), again(x))

        # and in a run on data of which nothing can be read
        caplog.clear()
        _, _, tester = self.make(root, tmp_path)
        fresh = Classification(model='resnet18', num_classes=21)
        loader = torch.utils.data.DataLoader(
            [{'image': torch.rand(3, 64, 64), 'label': torch.tensor(1)}] * 2
        )
        with caplog.at_level('INFO'):
            tester.test(fresh, loader, ckpt_path=tmp_path / 'last.ckpt')
        assert 'as when it was trained' in caplog.text
        assert 'there is no data module' in caplog.text
        torch.testing.assert_close(fresh.eval()(x), task(x))

    def test_from_before_it_was_kept(
        self, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The old behaviour stays, and the line says so: raw values for resnet18."""
        task, datamodule, trainer = self.make(root, tmp_path, weights=None)
        trainer.fit(task, datamodule)
        trainer.save_checkpoint(tmp_path / 'old.ckpt')
        content = torch.load(tmp_path / 'old.ckpt', weights_only=True)
        assert content[KEY] == {}  # nothing is done
        del content[KEY]  # as before version 0.2
        torch.save(content, tmp_path / 'old.ckpt')
        same, _, tester = self.make(root, tmp_path)
        tester.test(same, datamodule, ckpt_path=tmp_path / 'old.ckpt')
        x = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(same.eval()(x), task.eval()(x))

    def test_users_own_callback(self, root: Path, tmp_path: Path) -> None:
        task, datamodule, trainer = self.make(root, tmp_path)
        trainer.callbacks.append(PixelContract(normalize=False))
        trainer.fit(task, datamodule)
        (hook,) = find_normalizations(task).values()
        assert hook.transform.is_identity
        contracts = [c for c in trainer.callbacks if isinstance(c, PixelContract)]
        assert len(contracts) == 1

    def test_other_data_modules_after_it(self, root: Path, tmp_path: Path) -> None:
        """Regression: what one module had done was undone for every later one."""
        task, datamodule, trainer = self.make(root, tmp_path)
        trainer.fit(task, datamodule)
        trainer.save_checkpoint(tmp_path / 'last.ckpt')
        loaded = Classification.load_from_checkpoint(tmp_path / 'last.ckpt')
        mean, std = (x.view(3, 1, 1) for x in RGB.spread(3))
        raw = 255 * torch.rand(2, 3, 8, 8, dtype=torch.float64)
        for model in (task, loaded):
            for stage in ('test', 'fit'):
                other = datamodules.RESISC45DataModule()
                trainer = SimpleNamespace(datamodule=other)  # type: ignore[assignment]
                contract = PixelContract()
                contract.settle(trainer, model, stage)
                (result,) = seen(model, standardise(other, raw))
                torch.testing.assert_close(
                    result, (raw - mean) / std, rtol=1e-4, atol=1e-4
                )

    def test_weights_alone(self, root: Path, tmp_path: Path) -> None:
        """Regression: such a checkpoint lost what was decided."""
        task, datamodule, trainer = self.make(root, tmp_path)
        trainer.fit(task, datamodule)
        trainer.save_checkpoint(tmp_path / 'last.ckpt', weights_only=True)
        loaded = Classification.load_from_checkpoint(tmp_path / 'last.ckpt').eval()
        x = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(loaded(x), task.eval()(x))

    @pytest.mark.parametrize('callback', [LearningRateFinder, BatchSizeFinder])
    def test_finders(self, callback: Any, root: Path, tmp_path: Path) -> None:
        """Regression: what they save and restore switched the contract off."""
        task, datamodule, trainer = self.make(root, tmp_path)
        settings = {
            LearningRateFinder: {'num_training_steps': 2, 'update_attr': False},
            BatchSizeFinder: {'max_trials': 1, 'steps_per_trial': 1},
        }[callback]
        trainer.callbacks.append(callback(**settings))
        trainer.fit(task, datamodule)
        (hook,) = find_normalizations(task).values()
        assert hook.transform.fulfils
        assert not hook.transform.is_identity

    def test_fine_tuned_weights(self, root: Path, tmp_path: Path) -> None:
        """Regression: a task that starts from a fine-tuned one lost the pixels."""
        task, datamodule, trainer = self.make(root, tmp_path)
        trainer.fit(task, datamodule)
        trainer.save_checkpoint(tmp_path / 'last.ckpt')
        again, datamodule, trainer = self.make(
            root, tmp_path / 'again', weights=str(tmp_path / 'last.ckpt')
        )
        trainer.fit(again, datamodule)
        (hook,) = find_normalizations(again).values()
        assert hook.trained_on is not None
        assert hook.trained_on.mean == pytest.approx(RGB.mean)
        assert not hook.transform.is_identity

    def test_overridden_hooks(self, root: Path, tmp_path: Path) -> None:
        """Regression: Lightning calls these without the base's."""

        class Own(Classification):
            def configure_callbacks(self) -> Any:
                return Timer()

            def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
                checkpoint['mine'] = 1

            def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
                assert checkpoint['mine'] == 1

        weights = str(own_checkpoint(tmp_path / 'a.ckpt', RGB))
        _, datamodule, trainer = self.make(root, tmp_path)
        task = Own(model='resnet18', weights=weights, num_classes=21)
        trainer.fit(task, datamodule)
        trainer.save_checkpoint(tmp_path / 'last.ckpt')
        loaded = Own.load_from_checkpoint(tmp_path / 'last.ckpt').eval()
        (hook,) = find_normalizations(loaded).values()
        assert hook.transform.fulfils
        x = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(loaded(x), task.eval()(x))
