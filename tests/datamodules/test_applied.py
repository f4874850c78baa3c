# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What data modules do to their images: what is read is what they do."""

from typing import Any

import kornia.augmentation as K
import pytest
import torch
import torchgeo.datamodules
from torch import nn
from torchgeo.datamodules import (
    EuroSATDataModule,
    NonGeoDataModule,
    SeasonalContrastS2DataModule,
    UCMercedDataModule,
)
from torchgeo.datasets import EuroSAT

from tests.data.geotiff.data import generate
from torchgeo_cmid.datamodules import RasterFolderDataModule
from torchgeo_cmid.datamodules.applied import UnknownPixelsError, read_applied

#: Those that change images by code of their own, or normalise nothing.
UNKNOWN = {
    'AirQualityDataModule',
    'CopernicusBenchBiomassS3DataModule',
    'FLAIRHUBDataModule',
    'FLAIRHUBToyDataModule',
    'GeoNRWDataModule',
    'QuakeSetDataModule',
    'SubstationDataModule',
    'TreeSatAIDataModule',
}
#: Those that need arguments, or are bases of others.
NOT_BUILT = {
    'BaseDataModule',
    'ChesapeakeCVPRDataModule',
    'GeoDataModule',
    'NonGeoDataModule',
    'SpaceNetBaseDataModule',
}
STOCK = sorted(n for n in torchgeo.datamodules.__all__ if n.endswith('DataModule'))


def build(name: str) -> Any:
    return getattr(torchgeo.datamodules, name)()


def test_names() -> None:
    assert set(STOCK) >= UNKNOWN | NOT_BUILT
    for name in NOT_BUILT:
        with pytest.raises(TypeError, match='missing'):
            build(name)


@pytest.mark.parametrize('name', sorted({*STOCK} - NOT_BUILT - UNKNOWN))
def test_stock(name: str) -> None:
    """Constant images, which no crop changes, come out as was read."""
    datamodule = build(name)
    for stage, split in (('test', 'test'), ('predict', 'predict'), ('fit', 'val')):
        applied = read_applied(datamodule, stage)
        assert applied.source == name
        assert applied.unit is None or applied.unit in (1, 255, 10_000)
        augmentation = getattr(datamodule, f'{split}_aug') or datamodule.aug
        bands = len(applied.mean) if len(applied.mean) > 1 else 3
        raw = torch.linspace(3, 200, bands).view(1, bands, 1, 1).expand(2, -1, 640, 640)
        video = any(isinstance(m, K.VideoSequential) for m in augmentation.modules())
        image = torch.stack([raw, raw], dim=1) if video else raw
        output = augmentation({'image': image.clone()})['image']
        middle = output[..., output.shape[-2] // 2, output.shape[-1] // 2]
        mean, std = (torch.tensor(values) for values in (applied.mean, applied.std))
        expected = (raw[0, :, 0, 0] - mean) / std
        torch.testing.assert_close(
            middle, expected.expand_as(middle), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize('name', sorted(UNKNOWN))
def test_unknown(name: str) -> None:
    with pytest.raises(UnknownPixelsError, match=r'DataModule (changes|normalises)'):
        read_applied(build(name), 'fit')


def test_several_are_put_together() -> None:
    """Seasonal contrast: to 0..1 by quantiles, to 0..255, and by ImageNet's."""
    datamodule = SeasonalContrastS2DataModule()
    applied = read_applied(datamodule, 'fit')
    # its own attributes say that 0 is subtracted and divided by 255
    assert datamodule.std == 255
    raw = 50.0
    by_hand = ((raw - 3) / 85 * 255 - 0.485) / 0.229
    assert (raw - applied.mean[0]) / applied.std[0] == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(
    ('stages', 'message'),
    [
        (
            {'train_aug': nn.Sequential(K.Normalize(1.0, 2.0, p=0.5))},
            'some images only',
        ),
        ({'train_aug': nn.Sequential(nn.Conv2d(3, 3, 1))}, 'what Conv2d does'),
        ({'train_aug': nn.Sequential(K.Normalize(1.0, 2.0))}, 'train and val apart'),
        ({'aug': lambda batch: batch}, 'is no module'),
    ],
)
def test_refused(stages: dict[str, Any], message: str) -> None:
    datamodule = UCMercedDataModule()
    for name, augmentation in stages.items():
        setattr(datamodule, name, augmentation)
    with pytest.raises(UnknownPixelsError, match=message):
        read_applied(datamodule, 'fit')


def test_of_all_bands_or_of_each() -> None:
    """Regression: train and val were said to differ."""
    datamodule = UCMercedDataModule()
    each = torch.zeros(3), torch.full((3,), 255.0)
    datamodule.train_aug = nn.Sequential(K.Normalize(*each))
    assert read_applied(datamodule, 'fit').unit == 255


def test_undone_again() -> None:
    datamodule = UCMercedDataModule()
    mean, std = torch.tensor([2.0]), torch.tensor([4.0])
    datamodule.aug = nn.Sequential(K.Normalize(mean, std), K.Denormalize(mean, std))
    applied = read_applied(datamodule, 'test', unit=255)
    assert (applied.mean, applied.std) == ((0.0,), (1.0,))


def test_users_own() -> None:
    class Own(NonGeoDataModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    class Before(EuroSATDataModule):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    class Inherits(EuroSATDataModule):
        pass

    class Scaled(K.Normalize):
        """May do anything."""

    changed = EuroSATDataModule(transforms=lambda sample: sample)
    with pytest.raises(UnknownPixelsError, match='has transforms of the user'):
        read_applied(changed, 'fit')
    resized = EuroSATDataModule(transforms=K.AugmentationSequential(K.Resize(64)))
    assert read_applied(resized, 'fit') == read_applied(EuroSATDataModule(), 'fit')
    changed = EuroSATDataModule(transforms=nn.Sequential(Scaled(0.0, 255.0)))
    with pytest.raises(UnknownPixelsError, match='what Scaled does'):
        read_applied(changed, 'fit')
    changed = EuroSATDataModule(transforms=nn.Sequential(K.Normalize(0.0, 255.0)))
    with pytest.raises(UnknownPixelsError, match='normalises in its transforms'):
        read_applied(changed, 'fit')
    with pytest.raises(UnknownPixelsError, match='Before changes batches by code'):
        read_applied(Before(), 'fit')
    own = UCMercedDataModule()
    own.aug = nn.Sequential(Scaled(0.0, 255.0))
    with pytest.raises(UnknownPixelsError, match='what Scaled does'):
        read_applied(own, 'fit')
    own.aug = K.AugmentationSequential(
        K.Normalize(0.0, 1.0), K.Normalize(0.0, 255.0), random_apply=1
    )
    with pytest.raises(UnknownPixelsError, match='by chance'):
        read_applied(own, 'fit')

    with pytest.raises(UnknownPixelsError, match='Own changes batches by code'):
        read_applied(Own(EuroSAT), 'fit')
    assert read_applied(Inherits(), 'fit').unit == 10_000
    with pytest.raises(UnknownPixelsError, match='no data module of the kind'):
        read_applied(object(), 'fit')


@pytest.mark.parametrize(('dtype', 'unit'), [('uint8', 255), ('uint16', None)])
def test_raster_folder(dtype: str, unit: float | None, tmp_path: Any) -> None:
    generate(tmp_path, bands=2, dtype=dtype)
    datamodule = RasterFolderDataModule(
        str(tmp_path), patch_size=32, batch_size=2, length=2
    )
    datamodule.setup('fit')
    datamodule.train_dataloader()
    applied = read_applied(datamodule, 'fit')
    assert datamodule.normalization is not None
    assert applied.mean == pytest.approx(datamodule.normalization.mean)
    assert applied.std == pytest.approx(datamodule.normalization.std)
    assert applied.bands == (1, 2)
    assert applied.unit == unit
