# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The pixels that a backbone was trained on, and how images are brought to them.

One contract from the file to the first convolution: a backbone knows the bands, the
unit, the mean and the standard deviation of its training pixels, what has been done to
images is known from their data module or an argument, and the difference between the
two is made up in front of the stem. Nothing is guessed from values.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from .architectures import MEAN, STD
from .bands import expand_statistics

_logger = logging.getLogger(__name__)

#: Batches of which values are compared with the unit that was assumed, the share that
#: may lie outside of what is plausible, and what is, as multiples of the unit.
CHECKED_BATCHES = 4
TOLERATED = 0.01
PLAUSIBLE = (-0.5, 2.0)


class Standardised(Protocol):
    """What has been done to images: they are (raw - mean) / std."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean that was subtracted, of all bands or of each."""

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation by which was divided."""

    @property
    def unit(self) -> float | None:
        """The raw number that stands for 1. None: unknown."""

    @property
    def source(self) -> str:
        """What has done it."""

    @property
    def bands(self) -> tuple[int | str, ...] | None:
        """Names or 1-based numbers of the bands. None: unknown."""


@dataclass(frozen=True)
class Pixels:
    """The pixels that a backbone was trained on: (raw - mean) / std of these bands."""

    #: Mean of each band, in raw numbers.
    mean: tuple[float, ...]
    #: Standard deviation of each band, in raw numbers.
    std: tuple[float, ...]
    #: The raw number that stands for 1, such as 255 or 10,000. None: unknown.
    unit: float | None = None
    #: Names or 1-based numbers of the bands. None: unknown.
    bands: tuple[int | str, ...] | None = None
    #: Images that a data module has standardised by statistics of its own stay so, even
    #: of the same unit: the published weights are used like that.
    keeps_standardised: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If their numbers differ, an *std* is 0, or *unit* not positive.
        """
        lengths = {len(self.mean), len(self.std)}
        if self.bands is not None:
            lengths.add(len(self.bands))
        if len(lengths) != 1:
            raise ValueError(
                f'bands={self.bands}, mean={self.mean} and std={self.std} must have '
                'one value for each band'
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(self.std):
            raise ValueError(
                f'mean={self.mean} and std={self.std}: every value must be finite, and '
                'no std 0'
            )
        check_unit(self.unit)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Take the contract from a checkpoint or from the metadata of a file.

        Args:
            state: What :meth:`to_state` gave; ``mean`` and ``std`` at least.

        Returns:
            The contract.
        """
        bands = state.get('bands')
        return cls(
            tuple(map(float, state['mean'])),
            tuple(map(float, state['std'])),
            state.get('unit'),
            None if bands is None else tuple(bands),
            bool(state.get('keeps_standardised', False)),
        )

    @classmethod
    def of_images(cls, applied: Standardised, in_channels: int) -> Self:
        """The pixels that images are which something has been done to.

        Args:
            applied: Mean, std, unit and bands: what a data module has done.
            in_channels: Number of bands of an image.

        Returns:
            The contract of a backbone that is trained on them.
        """
        mean = _repeat(applied.mean, in_channels, applied.source)
        std = _repeat(applied.std, in_channels, applied.source)
        bands = applied.bands
        if bands is not None and len(bands) != in_channels:
            bands = None
        return cls(tuple(mean.tolist()), tuple(std.tolist()), applied.unit, bands)

    def to_state(self) -> dict[str, Any]:
        """Give the contract as plain values.

        Returns:
            Numbers, strings and lists of them by name.
        """
        listed = asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in listed.items()
        }

    @property
    def is_rgb(self) -> bool:
        """Whether filters and statistics may be spread over other bands."""
        return len(self.mean) == 3

    def spread(self, in_channels: int) -> tuple[Tensor, Tensor]:
        """Spread mean and standard deviation over the bands of a model.

        Args:
            in_channels: Number C of bands: as many, twice as many for two dates of one
                place, or another number to which the filters of RGB were spread.

        Returns:
            Mean and standard deviation in raw numbers, (C) each, double precision.

        Raises:
            ValueError: If it is not known which band is which.
        """
        known = len(self.mean)
        if in_channels == known or (known != 3 and in_channels == 2 * known):
            repeated = in_channels // known
            return (
                torch.tensor(self.mean * repeated, dtype=torch.float64),
                torch.tensor(self.std * repeated, dtype=torch.float64),
            )
        if not self.is_rgb:
            raise ValueError(
                f'the weights know the pixels of {known} bands, but the model has '
                f'{in_channels}: choose the bands that they were trained on, in their '
                f'order{"" if self.bands is None else f", {list(self.bands)}"}'
            )
        return (
            expand_statistics(self.mean, in_channels),
            expand_statistics(self.std, in_channels),
        )


def check_unit(unit: Any) -> None:
    """Refuse what is no unit.

    Args:
        unit: The raw number that stands for 1, None for unknown.

    Raises:
        ValueError: If it is neither.
    """
    number = isinstance(unit, int | float) and not isinstance(unit, bool)
    if unit is not None and not (number and math.isfinite(unit) and unit > 0):
        raise ValueError(f'unit={unit} must be a number above 0, such as 255 or 10000')


@dataclass(frozen=True)
class InputTransform:
    """What is done to each band of images in front of the stem: scale x + offset."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]
    #: Why, in words.
    reason: str
    #: Whether images so become the pixels that the backbone was trained on.
    fulfils: bool = True

    @property
    def is_identity(self) -> bool:
        """Whether images are taken as they are."""
        return not any(self.offset) and all(scale == 1 for scale in self.scale)


#: The pixels of the published weights: 8-bit images.
PUBLISHED = Pixels(
    mean=tuple(255 * mean for mean in MEAN),
    std=tuple(255 * std for std in STD),
    unit=255.0,
    bands=('R', 'G', 'B'),
    keeps_standardised=True,
)


def leave_images(
    in_channels: int, reason: str, fulfils: bool = False
) -> InputTransform:
    """Take images as they are.

    Args:
        in_channels: Number of bands.
        reason: Why.
        fulfils: Whether they are the pixels that the backbone was trained on.

    Returns:
        The transform that changes nothing.
    """
    ones, zeros = (1.0,) * in_channels, (0.0,) * in_channels
    return InputTransform(ones, zeros, reason, fulfils)


def from_unit(pixels: Pixels, in_channels: int, unit: float | None) -> InputTransform:
    """Normalise images of which is known what number stands for 1.

    Args:
        pixels: The pixels of the backbone.
        in_channels: Number of bands of the images.
        unit: The number in the images that stands for 1. None: they hold raw numbers.

    Returns:
        What brings them to the backbone's pixels.

    Raises:
        ValueError: If *unit* is given, but that of the backbone is not known.
    """
    if unit is not None and pixels.unit is None:
        raise ValueError(
            f'unit={unit:g} says what stands for 1 in the images, but the unit of the '
            'weights is not known: pass unit=None and raw numbers, as in training, or '
            'export the weights anew with unit=...'
        )
    factor = 1.0 if unit is None or pixels.unit is None else pixels.unit / unit
    mean, std = pixels.spread(in_channels)
    reason = 'raw numbers' if unit is None else f'values in 0..{unit:g}'
    return InputTransform(
        tuple((factor / std).tolist()),
        tuple((-mean / std).tolist()),
        f'{reason} are normalised by the mean and std of the weights',
    )


def from_standardised(
    pixels: Pixels, in_channels: int, applied: Standardised
) -> InputTransform:
    """Bring images that are (raw - mean) / std to the pixels of a backbone.

    Where the unit of the raw numbers is the backbone's, that is undone and the
    backbone's own mean and std take its place. Where it is not, or is not known, the
    images stay as they are: the statistics of one unit mean nothing in another. (A
    ResNet-18 trained on 8-bit RGB, AID, told clouds from ground in Sentinel-2 images of
    five dates, whose reflectance was standardised by its own statistics or brought to
    0..1 and normalised by the backbone's: k-NN with k = 20 on the features of stages 2
    and 3, left half of each date against the right, mean accuracy of the classes 0.967
    and 0.977 against 0.937 and 0.950; one date against the others 0.808 and 0.808
    against 0.802 and 0.803.)

    Args:
        pixels: The pixels of the backbone.
        in_channels: Number of bands of the images.
        applied: What has been done, to the bands of all dates or of each.

    Returns:
        What brings them there, or nothing, and why.

    Raises:
        ValueError: If the number of bands fits neither.
    """
    source, unit = applied.source, applied.unit
    _compare_bands(pixels, applied)
    done_mean = _repeat(applied.mean, in_channels, source)
    done_std = _repeat(applied.std, in_channels, source)
    own_mean, own_std = pixels.spread(in_channels)
    same = torch.allclose(done_mean, own_mean) and torch.allclose(done_std, own_std)
    if same:
        return leave_images(
            in_channels, f'{source} standardises as the weights were trained', True
        )
    if unit is None or pixels.unit is None:
        unknown = 'the images' if unit is None else 'the weights'
        return leave_images(
            in_channels,
            f'the unit of {unknown} is not known, so what {source} has done stays',
        )
    if unit != pixels.unit:
        return leave_images(
            in_channels,
            f'{source} has pixels of unit {unit:g}, the weights of {pixels.unit:g}, so '
            'what it has done stays',
        )
    if pixels.keeps_standardised and bool(done_mean.any()):
        return leave_images(
            in_channels, f'{source} has standardised the images already'
        )
    return InputTransform(
        tuple((done_std / own_std).tolist()),
        tuple(((done_mean - own_mean) / own_std).tolist()),
        f'what {source} has done is undone, and the images of unit {unit:g} are '
        'normalised by the mean and std of the weights',
    )


def _compare_bands(pixels: Pixels, applied: Standardised) -> None:
    """Refuse the bands of the weights in another order, where names tell."""
    own, given = pixels.bands, applied.bands
    if own is None or given is None or own == given:
        return
    named = all(isinstance(band, str) for band in (*own, *given))
    if named and sorted(map(str, own)) == sorted(map(str, given)):
        raise ValueError(
            f'{applied.source} gives the bands {list(given)}, but the weights were '
            f'trained on {list(own)}: name them in that order'
        )


def _repeat(values: Sequence[float], in_channels: int, source: str) -> Tensor:
    """Give each of the bands its value: of all, of each, or of each of one date."""
    dates = values[:in_channels], values[in_channels:]
    if dates[0] == dates[1]:  # two dates in one image
        values = dates[0]
    if in_channels % len(values):
        raise ValueError(
            f'{source} gives {len(values)} bands: in_channels={in_channels} must be '
            'that number, or half of it for two dates in one image'
        )
    return torch.tensor(values, dtype=torch.float64).repeat(in_channels // len(values))


class InputNormalization:
    """Brings images to the pixels of a backbone, in front of its stem.

    It is a hook, not a layer: the names of the model's tensors stay timm's, and every
    wrapper that takes the model apart keeps it.

    In a run of a TorchGeo task it is decided once, before the first batch, what is done
    to the images: see :class:`~torchgeo_cmid.callbacks.PixelContract`. In plain Python
    an argument says what number stands for 1 in the images. If more than 1 % of the
    values of the first four batches are implausible for that, this is an error, less a
    warning; they never change what is done.

    Attributes:
        pixels: The pixels of the backbone.
        normalize: What an argument says, which no run overrules.
        decided: What a run has decided.
        kept: Whether the model was trained like that.
        trained_on: The pixels that it was trained on so. None: unknown.
        transform: What is done to images as things stand.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        pixels: Pixels,
        normalize: bool | None = None,
        unit: float | None = 1.0,
    ) -> None:
        """Initialize a new InputNormalization instance.

        Args:
            name: What to call the model in messages.
            in_channels: Number of bands.
            pixels: The pixels of the backbone.
            normalize: True: images have the given *unit* and are normalised. False:
                they are taken as they are. None: a run decides; where there is none, as
                True.
            unit: The number that stands for 1 in the images. None: they hold raw
                numbers, as they do by default where the unit of *pixels* is not known.

        Raises:
            ValueError: If *unit* is another number and that of *pixels* is not known.
        """
        check_unit(unit)
        self.name = name
        self.in_channels = in_channels
        self.pixels = pixels
        self.normalize = normalize
        self.unit = unit
        self.decided: InputTransform | None = None
        self.trained_on: Pixels | None = None
        self.kept = False
        self._checked = 0
        self._refresh()

    def take_pixels(self, pixels: Pixels) -> None:
        """Follow other weights.

        Args:
            pixels: Their pixels.
        """
        self.pixels = pixels
        self._refresh()

    def set_in_channels(self, in_channels: int) -> None:
        """Spread the statistics over the bands of the model.

        Args:
            in_channels: Number of bands.
        """
        self.in_channels = in_channels
        self._refresh()

    def decide(self, transform: InputTransform) -> None:
        """Settle what is done to images from now on, unless an argument has.

        Args:
            transform: What is done.
        """
        self.decided = transform
        self._refresh()

    def keep(self, trained_on: Pixels | None) -> None:
        """Note that the model is trained as things stand, so that later runs keep it.

        Args:
            trained_on: The pixels that it sees so. None: unknown.
        """
        self.kept = True
        self.trained_on = trained_on

    def _refresh(self) -> None:
        """Work out what is done to images as things stand."""
        if self.normalize is False:
            transform = leave_images(self.in_channels, 'normalize=False')
        elif self.decided is not None and self.normalize is None:
            transform = self.decided
        else:
            # without the unit of the weights only raw numbers mean something
            raw = self.pixels.unit is None and self.unit == 1
            unit = None if raw else self.unit
            transform = from_unit(self.pixels, self.in_channels, unit)
        self.transform = transform
        self._scale = torch.tensor(transform.scale).view(-1, 1, 1)
        self._offset = torch.tensor(transform.offset).view(-1, 1, 1)

    def __call__(self, stem: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Normalise what the stem is given.

        Args:
            stem: The stem.
            args: Images, (B, C, H, W), and whatever else.

        Returns:
            The same, the images normalised.
        """
        images: Tensor = args[0]
        if images.is_meta or self.transform.is_identity:
            return args
        if self.normalize or self.decided is None:
            self._check(images)
        if not images.is_floating_point():
            images = images.float()
        scale, offset = self._scale.to(images), self._offset.to(images)
        dates = images.shape[1] // self.in_channels
        if dates > 1:
            scale, offset = scale.repeat(dates, 1, 1), offset.repeat(dates, 1, 1)
        return (images * scale + offset, *args[1:])

    def _check(self, images: Tensor) -> None:
        """Compare the values of the first batches with the unit that was assumed."""
        if torch.compiler.is_compiling() or self._checked == CHECKED_BATCHES:
            return
        if self.unit is None or self.pixels.unit is None:
            return
        self._checked += 1
        values = images.detach() / self.unit
        low, high = PLAUSIBLE
        outside = ((values < low) | (values > high)).float().mean()
        if not outside:
            return
        text = (
            f'{self.name} takes images in which {self.unit:g} stands for 1, but '
            f'{float(outside):.1%} of these values, {float(images.min()):.4g} to '
            f'{float(images.max()):.4g}, are far from that: pass unit=255 for 8-bit '
            'images, unit=10000 for reflectance times 10,000, or normalize=False for '
            'images that are normalised already'
        )
        if outside > TOLERATED:
            raise ValueError(text)
        _logger.warning(text)


def attach(
    model: nn.Module, input_module: str, normalization: InputNormalization
) -> None:
    """Put a normalisation in front of a module, in place of one that is there.

    Args:
        model: The model.
        input_module: Name of the module that is given the images.
        normalization: What brings them to the pixels of the backbone.
    """
    module = model.get_submodule(input_module)
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, InputNormalization):
            del module._forward_pre_hooks[key]
    module.register_forward_pre_hook(normalization)


def note_pixels(model: nn.Module, pixels: Pixels) -> None:
    """Write mean and std where users of plain timm look for them.

    Nothing applies them there. They are those of values in 0..1, as timm has them,
    where the unit is known, else of raw numbers.

    Args:
        model: A timm model; other models are left as they are.
        pixels: The pixels it was trained on.
    """
    config = getattr(model, 'pretrained_cfg', None)
    if not isinstance(config, dict):
        return
    unit = pixels.unit or 1.0
    model.pretrained_cfg = {  # type: ignore[assignment]
        **config,
        'mean': tuple(mean / unit for mean in pixels.mean),
        'std': tuple(std / unit for std in pixels.std),
    }


def find_normalizations(model: nn.Module) -> dict[str, InputNormalization]:
    """Find the normalisations in a model.

    Args:
        model: The model, or a task.

    Returns:
        They, by the names of the modules in front of which they are.
    """
    return {
        name: hook
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, InputNormalization)
    }


def find_pixels(content: Any, metadata: Mapping[str, str]) -> Pixels | None:
    """Find the pixels of a backbone in what a file holds.

    Args:
        content: What the file holds: of a checkpoint of ours ``pixels``, or in older
            ones the statistics of our data module (the unit is then unknown).
        metadata: Metadata of a safetensors file: of an exported one ``mean`` and
            ``std``, and ``unit`` and ``bands`` if known, as JSON.

    Returns:
        They, None if the file does not tell.
    """
    if 'mean' in metadata and 'std' in metadata:
        names = ('mean', 'std', 'unit', 'bands', 'keeps_standardised')
        return Pixels.from_state(
            {name: json.loads(metadata[name]) for name in names if name in metadata}
        )
    if not isinstance(content, Mapping):
        return None
    if isinstance(content.get('pixels'), Mapping):
        return Pixels.from_state(content['pixels'])
    for value in content.values():  # the state of our data module, before version 0.2
        known = value.get('normalization') if isinstance(value, Mapping) else None
        if isinstance(known, Mapping):
            return Pixels.from_state(known)
    return None
