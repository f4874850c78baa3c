# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The data module feeds Lightning, keeps its statistics, and refuses bad input."""

import inspect
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample

from tests.data.geotiff.data import ORIGIN, generate, write_scene
from torchgeo_cmid.datamodules import OlindaDataModule, RasterFolderDataModule
from torchgeo_cmid.datamodules.raster_folder import RANGES
from torchgeo_cmid.datasets import Scenes, Sensor, decode_crs


class Recorder(LightningModule):
    """Trains nothing and keeps every batch."""

    def __init__(self) -> None:
        """Start with no batches."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.train_batches: list[Sample] = []
        self.val_batches: list[Sample] = []

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        self.train_batches.append(batch)
        return self.weight * batch['image'].mean()

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.val_batches.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data_module(folder: Path, **arguments: Any) -> RasterFolderDataModule:
    defaults: dict[str, Any] = {
        'patch_size': 32,
        'length': 16,
        'batch_size': 8,
        'val_split': 0.4,
    }
    return RasterFolderDataModule(str(folder), **defaults | arguments)


def fit(
    folder: Path,
    seed: int = 0,
    ckpt_path: Path | None = None,
    max_epochs: int = 2,
    logger: bool = True,
    precision: Any = '32-true',
    **arguments: Any,
) -> tuple[Recorder, Trainer]:
    """Train on the scenes of a folder and write below its sister ``runs``."""
    runs = folder.parent / 'runs'
    seed_everything(seed)
    task = Recorder()
    trainer = Trainer(
        accelerator='cpu',
        max_epochs=max_epochs,
        precision=precision,
        logger=CSVLogger(runs) if logger else False,
        default_root_dir=runs,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(
        task,
        datamodule=data_module(folder, **arguments),
        ckpt_path=ckpt_path,
        weights_only=True,
    )
    return task, trainer


def places(batches: list[Sample]) -> Tensor:
    return torch.cat([batch['bounds'] for batch in batches])


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    generate(tmp_path / 'scenes', 3, size=(96, 64))
    return tmp_path / 'scenes'


class TestFit:
    def test_batches(self, scenes: Path) -> None:
        task, _ = fit(scenes)
        assert len(task.train_batches) == 2 * 2
        for batch in task.train_batches:
            assert set(batch) == {
                *('image', 'valid', 'patch', 'crs', 'bounds', 'transform')
            }
            assert batch['image'].shape == (8, 3, 32, 32)
            assert batch['valid'].shape == (8, 1, 32, 32)
            assert batch['valid'].dtype == torch.bool
            assert batch['bounds'].shape == batch['transform'].shape == (8, 9)
            assert len(batch['bounds'][:, 0].div(20_000).floor().unique()) > 1
        images = torch.cat([batch['image'] for batch in task.train_batches])
        assert images.mean().abs() < 0.2
        assert images.std() == pytest.approx(1, abs=0.2)

    def test_normalisation_leaves_the_rest_of_the_batch_alone(
        self, scenes: Path
    ) -> None:
        module = data_module(scenes)
        module.setup('fit')
        batch = next(iter(module.train_dataloader()))
        image = (batch['image'] - module.mean[:, None, None]) / module.std[
            :, None, None
        ]
        expected = {**batch, 'image': image}
        result = module.aug({key: value.clone() for key, value in batch.items()})
        assert set(result) == set(expected)
        for key, value in expected.items():
            torch.testing.assert_close(result[key], value)

    @pytest.mark.parametrize('precision', ['32-true', '16-true', 'bf16-true'])
    def test_addresses_survive_every_precision(
        self, scenes: Path, precision: Any
    ) -> None:
        """Floats of a batch are cast; where its patches lie is exact all the same."""
        task, trainer = fit(scenes, max_epochs=1, precision=precision)
        dataset: Scenes = trainer.datamodule.scenes  # type: ignore[attr-defined]
        for batch in task.train_batches + task.val_batches:
            assert batch['patch'].dtype == torch.int64
            for i, patch in enumerate(batch['patch']):
                scene = dataset.scenes[patch[0]]
                assert decode_crs(batch['crs'][i]) == scene.crs
                place = dataset.georeference(patch, batch['image'].shape[-1])
                corner = scene.transform @ (int(patch[2]), int(patch[1]))
                assert place.transform @ (0, 0) == corner
        drawn = torch.cat([batch['patch'] for batch in task.train_batches])
        sampler = trainer.datamodule.train_sampler  # type: ignore[attr-defined]
        sampler.set_epoch(0)
        assert drawn.tolist() == [list(patch) for patch in sampler]

    def test_validation_is_the_same_every_epoch_and_apart(self, scenes: Path) -> None:
        task, _ = fit(scenes, length=128)
        val = places(task.val_batches)
        half = len(val) // 2
        assert half > 0
        assert torch.equal(val[:half], val[half:])
        train = places(task.train_batches)
        for box in val:
            apart = (
                (train[:, 0] >= box[1])
                | (train[:, 1] <= box[0])
                | (train[:, 3] >= box[4])
                | (train[:, 4] <= box[3])
            )
            assert apart.all()

    def test_no_validation(self, scenes: Path) -> None:
        task, trainer = fit(scenes, val_split=0.0)
        assert len(task.train_batches) == 4
        assert task.val_batches == []
        assert sum(trainer.num_val_batches) == 0

    def test_validate_alone(self, scenes: Path) -> None:
        task = Recorder()
        trainer = Trainer(
            accelerator='cpu',
            logger=False,
            default_root_dir=scenes.parent,
            enable_progress_bar=False,
        )
        trainer.validate(task, datamodule=data_module(scenes), verbose=False)
        assert task.val_batches[0]['image'].std() == pytest.approx(1, abs=0.3)


class TestReproducibility:
    def test_follows_from_seed_and_epoch(self, scenes: Path) -> None:
        first = places(fit(scenes, seed=1)[0].train_batches)
        again = places(fit(scenes, seed=1)[0].train_batches)
        other = places(fit(scenes, seed=2)[0].train_batches)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert not torch.equal(first[:16], first[16:])

    def test_does_not_depend_on_workers(self, scenes: Path) -> None:
        alone, _ = fit(scenes, seed=1, max_epochs=1)
        workers, _ = fit(scenes, seed=1, max_epochs=1, num_workers=2)
        for a, b in zip(alone.train_batches, workers.train_batches, strict=True):
            for key, value in a.items():
                assert torch.equal(value, b[key])

    def test_does_not_depend_on_the_cache(self, scenes: Path) -> None:
        first, _ = fit(scenes, max_epochs=1)
        for workers in (2, 0):  # the first fill it
            cache = str(scenes.parent / 'cache')
            task, _ = fit(scenes, max_epochs=1, num_workers=workers, cache=cache)
            for name in ('train_batches', 'val_batches'):
                batches, expected = getattr(task, name), getattr(first, name)
                for a, b in zip(batches, expected, strict=True):
                    assert all(torch.equal(a[key], b[key]) for key in b)
        assert list((scenes.parent / 'cache').glob('*/*.safetensors'))

    def test_resume_continues_with_seed_and_statistics(self, scenes: Path) -> None:
        whole, trainer = fit(scenes, seed=1, max_epochs=2)
        _, half = fit(scenes, seed=1, max_epochs=1)
        assert half.checkpoint_callback is not None
        path = Path(half.checkpoint_callback.best_model_path)  # type: ignore[attr-defined]
        state = torch.load(path, weights_only=True)['RasterFolderDataModule']
        assert state['seed'] == 1
        state['normalization']['mean'] = [0.0, 0.0, 0.0]
        checkpoint = torch.load(path, weights_only=True)
        checkpoint['RasterFolderDataModule'] = state
        torch.save(checkpoint, path)

        resumed, second = fit(scenes, seed=5, ckpt_path=path, max_epochs=2)
        expected = places(whole.train_batches[2:])
        assert torch.equal(places(resumed.train_batches), expected)
        module = second.datamodule  # type: ignore[attr-defined]
        assert module.mean.tolist() == [0, 0, 0]
        assert trainer.datamodule.mean.min() > 0  # type: ignore[attr-defined]


class TestStatistics:
    def test_valid_training_pixels_alone(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', size=(128, 40), fill=0.25, nodata=0)
        with rasterio.open(path) as file:
            image = file.read()[:, 32:].astype(float).reshape(3, -1)
        module = data_module(path, length=400, val_split=0.0)
        module.setup('fit')
        module.train_dataloader()
        np.testing.assert_allclose(module.mean, image.mean(axis=1), rtol=0.05)
        np.testing.assert_allclose(module.std, image.std(axis=1), rtol=0.05)

    def test_exact_where_one_patch_is_the_scene(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', size=32, dtype='float32')
        with rasterio.open(path) as file:
            image = file.read().astype(float).reshape(3, -1)
        module = data_module(path, val_split=0.0)
        module.setup('fit')
        module.train_dataloader()
        assert module.normalization is not None
        np.testing.assert_allclose(module.normalization.mean, image.mean(axis=1))
        np.testing.assert_allclose(module.normalization.std, image.std(axis=1))

    def test_kept_beside_the_run(self, scenes: Path) -> None:
        _, trainer = fit(scenes, max_epochs=1)
        assert trainer.log_dir is not None
        content = json.loads(Path(trainer.log_dir, 'normalization.json').read_text())
        assert content['bands'] == [1, 2, 3]
        assert content['mean'] == pytest.approx(
            trainer.datamodule.mean.tolist()  # type: ignore[attr-defined]
        )
        assert len(content['std']) == 3
        assert not list(Path(trainer.log_dir).glob('*.partial'))

    def test_does_not_depend_on_the_seed_of_the_run(self, scenes: Path) -> None:
        paths = [fit(scenes, seed=seed, max_epochs=1)[1].log_dir for seed in (1, 2)]
        texts = [Path(str(path), 'normalization.json').read_text() for path in paths]
        assert texts[0] == texts[1]

    def test_never_overwrites_those_of_another_run(self, scenes: Path) -> None:
        _, trainer = fit(scenes, max_epochs=1, logger=False)
        path = Path(trainer.default_root_dir, 'normalization.json')
        before = path.read_text()
        fit(scenes, max_epochs=1, logger=False)  # the same values: nothing to say
        with pytest.raises(FileExistsError, match=r'normalization.json holds'):
            fit(scenes, max_epochs=1, logger=False, bands=[1, 2])
        assert path.read_text() == before

    def test_given(self, scenes: Path) -> None:
        arguments = {'mean': [1.0, 2.0, 3.0], 'std': [4.0, 5.0, 6.0]}
        _, trainer = fit(scenes, max_epochs=1, **arguments)
        module = trainer.datamodule  # type: ignore[attr-defined]
        assert module.mean.tolist() == arguments['mean']
        assert module.std.tolist() == arguments['std']
        module.load_state_dict(
            {
                'seed': 3,
                'normalization': {'bands': [1, 2, 3], 'mean': [0.0], 'std': [1.0]},
            }
        )
        assert module.mean.tolist() == arguments['mean']

    @pytest.mark.parametrize(
        ('mean', 'std', 'message'),
        [
            ([1.0], None, 'mean and std go together'),
            ([1.0], [1.0], 'mean has 1 values, but there are 3 bands'),
            ([1.0] * 3, [1.0] * 2, 'std has 2 values'),
            ([1.0] * 3, [1.0, 0.0, 1.0], 'every value must be positive'),
        ],
    )
    def test_given_wrongly(
        self, scenes: Path, mean: list[float], std: list[float] | None, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            data_module(scenes, mean=mean, std=std).setup('fit')

    def test_constant_band_becomes_zero(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', size=96)
        with rasterio.open(path, 'r+') as file:
            file.write(np.full((96, 96), 7, dtype=np.uint16), 2)
        module = data_module(path)
        module.setup('fit')
        with pytest.warns(UserWarning, match=r'bands \[2\] are constant'):
            batch = next(iter(module.train_dataloader()))
        image = module.aug(batch)['image']
        assert module.std[1] == 1
        assert not image[:, 1].any()
        assert image.isfinite().all()

    def test_nothing_but_fill(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', fill=1.0, nodata=0)
        module = data_module(path, val_split=0.0)
        module.setup('fit')
        with pytest.raises(ValueError, match=r'no valid pixel.*a.tif'):
            module.train_dataloader()

    def test_checkpoint_of_other_bands(self, scenes: Path) -> None:
        module = data_module(scenes)
        module.setup('fit')
        module.train_dataloader()
        other = data_module(scenes, bands=[2, 1])
        other.setup('fit')
        with pytest.raises(ValueError, match=r'made with bands=\[1, 2, 3\]'):
            other.load_state_dict(module.state_dict())


class TestArguments:
    def test_in_channels(self, scenes: Path) -> None:
        module = data_module(scenes, bands=[3, 1])
        assert not hasattr(module, 'in_channels')
        module.setup('fit')
        assert module.in_channels == 2

    def test_default_length(self, scenes: Path) -> None:
        module = data_module(scenes, length=None, val_split=0.0)
        module.setup('fit')
        assert len(module.train_sampler) == 3 * 3 * 2

    def test_epoch_without_a_batch(self, scenes: Path) -> None:
        with pytest.raises(ValueError, match=r'length=16.*no batch of batch_size=64'):
            data_module(scenes, batch_size=64).setup('fit')

    def test_set_up_once(self, scenes: Path) -> None:
        module = data_module(scenes)
        module.setup('fit')
        sampler = module.train_sampler
        module.setup('validate')
        assert module.train_sampler is sampler

    @pytest.mark.parametrize(
        ('argument', 'value'),
        [
            ('patch_size', 0),
            ('patch_size', 31.5),
            ('patch_size', (32, 32)),
            ('length', 0),
            ('length', 2.5),
            ('batch_size', 0),
            ('batch_size', True),
            ('num_workers', -1),
            ('val_split', 1),
            ('val_split', math.nan),
            ('split_seed', -1),
            ('min_valid', 1.1),
            ('min_valid', math.nan),
            ('dates', 0),
            ('dates', 3),
            ('dates', 1.5),
            ('unit', 0),
            ('unit', math.inf),
            ('val_length', 0),
        ],
    )
    def test_out_of_range(self, argument: str, value: Any) -> None:
        """When it is made: with a set-up of hours an error there comes late."""
        text = re.escape(f'{argument}={value} must be {RANGES[argument]}')
        with pytest.raises(ValueError, match=text):
            RasterFolderDataModule('nowhere', **{argument: value})

    def test_patch_larger_than_every_scene(self, scenes: Path) -> None:
        message = r'patch_size=65 is larger than every scene.*scene_0.tif with 96 x 64'
        with pytest.raises(ValueError, match=message):
            data_module(scenes, patch_size=65).setup('fit')

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match='no such file or folder'):
            data_module(tmp_path / 'missing').setup('fit')

    def test_undeclared_nan(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', dtype='float32')
        with rasterio.open(path, 'r+') as file:
            file.write(np.full((64, 64), np.nan, dtype=np.float32), 2)
        module = data_module(path, val_split=0.0, nodata=-1)
        module.setup('fit')
        with pytest.raises(ValueError, match=r'a.tif, rows .* NaN'):
            module.train_dataloader()
        for nodata in (None, float('nan')):
            module = data_module(path, val_split=0.0, nodata=nodata)
            module.setup('fit')
            with pytest.raises(ValueError, match='no valid pixel'):
                module.train_dataloader()

    def test_those_of_the_scenes_are_attributes(self, scenes: Path) -> None:
        """Kept once: what is read and set here is what the scenes get."""
        module = data_module(scenes, bands=[3, 1], min_valid=0.25)
        assert module.paths == str(scenes)
        assert module.bands == [3, 1]
        assert module.min_valid == 0.25
        assert (module.nodata, module.sensors, module.roi) == (None, None, None)
        assert (module.skip_bad_files, module.date_format) == (False, '%Y%m%d')
        assert (module.cache, module.all_bands, module.filename_regex) == (None,) * 3
        module.bands = [2]
        module.setup('fit')
        assert module.scenes.bands == (2,)
        copy = pickle.loads(pickle.dumps(data_module(scenes, nodata=3.0)))
        assert copy.nodata == 3.0
        with pytest.raises(AttributeError, match='RasterFolderDataModule has no band,'):
            _ = module.band

    @pytest.mark.parametrize('kind', [RasterFolderDataModule, OlindaDataModule])
    def test_help_of_every_argument(self, kind: type[RasterFolderDataModule]) -> None:
        """What ``torchgeo fit --data.help`` shows."""
        parser = ArgumentParser()
        parser.add_class_arguments(kind, 'data')
        shown = ' '.join(parser.format_help().split())
        for name in inspect.signature(kind).parameters:
            (action,) = (a for a in parser._actions if a.dest == f'data.{name}')
            assert action.help
            assert len(action.help.split()) > 2
            assert ' '.join(action.help.split()) in shown

    def test_defaults_are_those_of_the_scenes(self) -> None:
        ours = inspect.signature(RasterFolderDataModule).parameters
        shared = inspect.signature(Scenes).parameters.keys() & ours.keys()
        assert len(shared) == 12
        for name in shared:
            expected = inspect.signature(Scenes).parameters[name].default
            assert ours[name].default == expected, name


class TestUnit:
    @pytest.mark.parametrize(
        ('dtypes', 'expected'),
        [
            (['uint8', 'uint8'], 255.0),
            (['uint8', 'uint16'], None),
            (['uint16'], None),
            (['float32'], None),
        ],
    )
    def test_follows_from_the_files(
        self, tmp_path: Path, dtypes: list[str], expected: float | None
    ) -> None:
        x, y = ORIGIN
        for i, dtype in enumerate(dtypes):
            write_scene(tmp_path / f'{i}.tif', dtype=dtype, origin=(x + 9000 * i, y))
        module = data_module(tmp_path, val_split=0.0)
        assert not hasattr(module, 'unit')
        module.setup('fit')
        assert module.unit == expected

    def test_of_one_band_per_file(self, tmp_path: Path) -> None:
        for i, dtype in enumerate(['uint8', 'uint16']):
            write_scene(tmp_path / f's_B{i}.tif', bands=1, dtype=dtype, seed=i)
        for bands, expected in (['B0'], 255.0), (['B0', 'B1'], None):
            module = data_module(
                tmp_path,
                filename_regex=r's_(?P<band>B\d)\.tif',
                bands=bands,
                val_split=0.0,
            )
            module.setup('fit')
            assert module.unit == expected

    @pytest.mark.parametrize('scaled', [{'scale': 1 / 255}, {'offset': 1.0}])
    def test_of_sensors(self, tmp_path: Path, scaled: dict[str, float]) -> None:
        path = str(write_scene(tmp_path / 'a.tif', dtype='uint8'))
        for sensor, expected in (Sensor(path), 255.0), (Sensor(path, **scaled), None):
            module = data_module(tmp_path, sensors=[sensor], val_split=0.0)
            module.setup('fit')
            assert module.unit == expected

    def test_given(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', dtype='uint8')
        module = data_module(path, unit=1e4, val_split=0.0)
        assert module.unit == 10_000
        module.setup('fit')
        assert module.unit == 10_000

    @pytest.mark.parametrize('unit', [0.0, -1.0, float('inf'), float('nan')])
    def test_out_of_range(self, tmp_path: Path, unit: float) -> None:
        with pytest.raises(ValueError, match=f'unit={unit} must be a finite number'):
            data_module(tmp_path, unit=unit)

    def test_with_a_cache(self, tmp_path: Path) -> None:
        """A second start opens no file, and knows it all the same."""
        path = write_scene(tmp_path / 'a.tif', dtype='uint8')
        for _ in range(2):
            module = data_module(path, cache=str(tmp_path / 'cache'), val_split=0.0)
            module.setup('fit')
            assert module.unit == 255


class TestOlinda:
    def test_a_first_try_needs_no_argument(self) -> None:
        module = OlindaDataModule()
        module.setup('fit')
        assert module.in_channels == 6
        assert module.unit == 255
        assert len(module.train_dataloader()) == 16
        batch = next(iter(module.val_dataloader()))
        assert batch['image'].shape == (3, 6, 96, 96)
