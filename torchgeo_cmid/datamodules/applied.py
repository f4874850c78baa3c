# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What a data module has done to its images before a task sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import kornia.augmentation as K
import torch
from torch import Tensor, nn
from torchgeo.datamodules import BaseDataModule

#: The raw number that stands for 1 in what TorchGeo's data modules read, where the
#: number they divide by does not tell: most leave it at the 255 of 8-bit images. None
#: where they do so with something else of which it is not known.
UNITS: dict[str, float | None] = {
    'AgriFieldNetDataModule': None,
    'BigEarthNetDataModule': 10_000.0,
    'CaBuArDataModule': 10_000.0,
    'ChaBuDDataModule': 10_000.0,
    'CloudCoverDetectionDataModule': 10_000.0,
    'DigitalTyphoonDataModule': 1.0,
    'EuroSATDataModule': 10_000.0,
    'EuroSATSpatialDataModule': 10_000.0,
    'EuroSAT100DataModule': 10_000.0,
    'FieldsOfTheWorldDataModule': 10_000.0,
    'HySpecNet11kDataModule': 10_000.0,
    'IOBenchDataModule': None,
    'L8BiomeDataModule': None,
    'OSCDDataModule': 10_000.0,
    'OSCD100DataModule': 10_000.0,
    'PASTISDataModule': 10_000.0,
    'PASTIS100DataModule': 10_000.0,
    'PatternNetDataModule': 255.0,
    'RESISC45DataModule': 255.0,
    'SSL4EOS12DataModule': 10_000.0,
    'Sentinel2CDLDataModule': 10_000.0,
    'Sentinel2EuroCropsDataModule': 10_000.0,
    'Sentinel2NCCMDataModule': 10_000.0,
    'Sentinel2SouthAmericaSoybeanDataModule': 10_000.0,
    'So2SatDataModule': 1.0,
    'SolarPlantsBrazilDataModule': 10_000.0,
    'SouthAfricaCropTypeDataModule': None,
    'SpaceNet6DataModule': None,
    'SustainBenchCropYieldDataModule': None,
}

#: Data modules of TorchGeo that change nothing but masks on their own.
CHANGE_MASKS_ALONE = {
    'ChesapeakeCVPRDataModule',
    'ETCI2021DataModule',
    'SEN12MSDataModule',
    'SpaceNetBaseDataModule',
}

#: Where a data module may change a batch.
HOOKS = {
    'on_before_batch_transfer',
    'transfer_batch_to_device',
    'on_after_batch_transfer',
}

#: The parts of a data set that a run reads, by what the trainer is asked to do.
SPLITS = {
    'fit': ('train', 'val'),
    'validate': ('val',),
    'test': ('test',),
    'predict': ('predict',),
}


class UnknownPixelsError(ValueError):
    """What has been done to images cannot be read from their data module."""


@dataclass(frozen=True)
class Applied:
    """What has been done to images: they are (raw - mean) / std."""

    #: Mean that was subtracted, of all bands or of each.
    mean: tuple[float, ...]
    #: Standard deviation by which was divided.
    std: tuple[float, ...]
    #: The raw number that stands for 1. None: unknown.
    unit: float | None
    #: What has done it.
    source: str
    #: Names or 1-based numbers of the bands. None: unknown.
    bands: tuple[int | str, ...] | None = None


def read_applied(datamodule: Any, stage: str, unit: float | None = None) -> Applied:
    """Read what a data module does to its images.

    Read are the ``Normalize`` of the augmentations that it applies to a batch, not its
    attributes ``mean`` and ``std``, which some data modules of TorchGeo do not use.

    Args:
        datamodule: The data module, None if there is none.
        stage: 'fit', 'validate', 'test' or 'predict'.
        unit: The raw number that stands for 1. None: the data module's own ``unit``, or
            that of TorchGeo's data modules, or 255 where it divides by 255.

    Returns:
        What it does.

    Raises:
        UnknownPixelsError: If it cannot be read.
    """
    if datamodule is None:
        raise UnknownPixelsError('there is no data module')
    name = type(datamodule).__name__
    if not isinstance(datamodule, BaseDataModule):
        raise UnknownPixelsError(f'{name} is no data module of the kind of TorchGeo')
    own = _find_override(type(datamodule))
    if own is not None:
        raise UnknownPixelsError(f'{own} changes batches by code of its own')
    transforms = datamodule.kwargs.get('transforms')
    if transforms is not None:  # VHR10DataModule resizes by its own
        if not isinstance(transforms, nn.Module):
            raise UnknownPixelsError(f'{name} has transforms of the user')
        if _compose(transforms, f'{name}, transforms') != ((0.0,), (1.0,)):
            raise UnknownPixelsError(f'{name} normalises in its transforms')
    found = {}
    for split in SPLITS[stage]:
        augmentation = getattr(datamodule, f'{split}_aug') or datamodule.aug
        found[split] = _compose(augmentation, f'{name}, {split}')
    first, *others = found.values()
    if any(not _same(other, first) for other in others):
        raise UnknownPixelsError(f'{name} standardises {" and ".join(found)} apart')
    mean, std = first
    unit = unit or _find_unit(datamodule, std)
    if unit is None and not any(mean) and all(value == 1 for value in std):
        raise UnknownPixelsError(
            f'{name} normalises nothing, and the unit of its images is not known'
        )
    scenes = getattr(datamodule, 'scenes', None)
    return Applied(mean, std, unit, name, getattr(scenes, 'bands', None))


def _find_override(datamodule: type[Any]) -> str | None:
    """Name the class that changes batches otherwise than TorchGeo's bases do."""
    for kind in datamodule.__mro__:
        if kind.__module__ == BaseDataModule.__module__:
            return None  # TorchGeo's bases
        stock = kind.__module__.startswith('torchgeo.')
        if HOOKS & vars(kind).keys() and not (
            stock and kind.__name__ in CHANGE_MASKS_ALONE
        ):
            return kind.__name__
    return None


def _same(
    one: tuple[tuple[float, ...], ...], other: tuple[tuple[float, ...], ...]
) -> bool:
    """Compare mean and std, of all bands or of each."""
    pairs = zip(one, other, strict=True)
    return all(
        len({*a, *b}) == 1 if 1 in (len(a), len(b)) else a == b for a, b in pairs
    )


def _compose(
    augmentation: Any, source: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Put all that is subtracted and divided by together to one mean and one std.

    What changes shapes or is drawn at random has nothing to do with the unit.
    """
    if not isinstance(augmentation, nn.Module):
        raise UnknownPixelsError(f'{source}: {augmentation!r:.60} is no module')
    mean, std = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    module: Any
    for module in augmentation.modules():
        if getattr(module, 'random_apply', False):
            raise UnknownPixelsError(f'{source}: applies a part of it, by chance')
        if type(module) is K.Normalize:
            if module.p != 1:
                raise UnknownPixelsError(f'{source}: normalises some images only')
            # ((raw - mean) / std - m) / s = (raw - (mean + std m)) / (std s)
            m, s = (_flat(module.flags[key]) for key in ('mean', 'std'))
            mean, std = mean + std * m, std * s
        elif type(module) is K.Denormalize:
            m, s = (_flat(module.flags[key]) for key in ('mean', 'std'))
            mean, std = mean - std * m / s, std / s
        elif not _is_known(module):
            raise UnknownPixelsError(
                f'{source}: what {type(module).__name__} does to values is not known'
            )
    bands = max(len(mean), len(std))
    return tuple(mean.expand(bands).tolist()), tuple(std.expand(bands).tolist())


def _flat(values: Tensor | Sequence[float] | float) -> Tensor:
    """One value for each band, (C) or (1), double precision."""
    return torch.as_tensor(values, dtype=torch.float64).flatten()


def _is_known(module: nn.Module) -> bool:
    """Tell whether a module is an augmentation, which leaves the unit as it is.

    One of the user's own may do anything, whatever it inherits from.
    """
    if type(module) in (nn.Sequential, nn.ModuleList, nn.Identity):
        return True
    return type(module).__module__.startswith(('torchgeo.transforms', 'kornia.'))


def _find_unit(datamodule: BaseDataModule, std: tuple[float, ...]) -> float | None:
    """Find the raw number that stands for 1."""
    if hasattr(datamodule, 'unit'):
        unit: float | None = datamodule.unit
        return unit
    for kind in type(datamodule).__mro__:
        if kind.__name__ in UNITS and kind.__module__.startswith('torchgeo.'):
            return UNITS[kind.__name__]
    return 255.0 if all(value == 255 for value in std) else None
