# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Images per second of our two views next to kornia's own pipeline of the same recipe.

For 3 and for 13 bands the contestants take turns at drawing views of the same patches:

* kornia: the recipe as its user writes it, from ``AugmentationSequential``,
  ``RandomResizedCrop``, ``RandomHorizontalFlip``, ``ColorJitter``,
  ``RandomGaussianBlur``, ``RandomSolarize`` and ``RandomGrayscale``, with the two
  augmentations of section 2 of the design that kornia lacks,
* cmid: :class:`torchgeo_cmid.transforms.Views`.

From the same seed both draw the same parameters, and the tests show that the views then
agree. Timed are the two views of each patch, either view alone, and the changes of the
strong view's values without its crop. Printed are the medians of patches per second,
and the ratio of ours to kornia's. Where others use the machine, threads that spin while
they wait cost either many times the work: ``OMP_WAIT_POLICY`` is printed.

    OMP_WAIT_POLICY=passive python experiments/benchmarks/views.py
    python experiments/benchmarks/views.py --threads 1 --patch-size 448
"""

import argparse
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import kornia
import kornia.augmentation as K
import torch
from kornia.augmentation import random_generator as rg
from kornia.constants import DataKey, Resample
from torch import Tensor, nn
from torchgeo.transforms import RandomGrayscale

from torchgeo_cmid.transforms import MultispectralPhotometric, RGBPhotometric, Views

Pair = tuple[Tensor, Tensor]


class RandomNoise(K.IntensityAugmentationBase2D):
    """Add Gaussian noise whose standard deviation is drawn for each image."""

    def __init__(self, std: tuple[float, float], p: float) -> None:
        """Choose the range of the standard deviation and the probability."""
        super().__init__(p=p)
        self._param_generator = rg.PlainUniformGenerator((std, 'std', None, None))

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], *_: Any, **__: Any
    ) -> Tensor:
        """Add the noise."""
        std = params['std'].to(input).view(-1, 1, 1, 1)
        return input + std * torch.randn_like(input)


class RandomBandJitter(K.IntensityAugmentationBase2D):
    """Change brightness and contrast by one factor for all bands times one per band."""

    def __init__(self) -> None:
        """Draw factors in 0.6-1.4, and 0.9-1.1 per band, for 80 % of the images."""
        super().__init__(p=0.8)
        self._param_generator = rg.PlainUniformGenerator(
            ((0.6, 1.4), 'brightness', None, None), ((0.6, 1.4), 'contrast', None, None)
        )

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], *_: Any, **__: Any
    ) -> Tensor:
        """Change brightness, then contrast."""
        bands = input.new_empty(2, *input.shape[:2], 1, 1).uniform_(0.9, 1.1)
        brightness = params['brightness'].to(input).view(-1, 1, 1, 1) * bands[0]
        contrast = params['contrast'].to(input).view(-1, 1, 1, 1) * bands[1]
        mean = input.mean(dim=(2, 3), keepdim=True)
        return brightness * (mean + contrast * (input - mean))


class KorniaPhotometric(nn.Module):
    """The strong view's recipe for RGB, or for any bands, of kornia's augmentations."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        """Take the mean and standard deviation of each band, (C,)."""
        super().__init__()
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        blur = K.RandomGaussianBlur((7, 7), (0.1, 2.0), p=1.0)
        if len(mean) == 3:
            self.augment = K.AugmentationSequential(
                K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
                blur,
                RandomNoise((0.012, 0.028), p=0.6),
                K.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=0.2),
                K.RandomGrayscale(p=0.2),
                data_keys=[DataKey.INPUT],
            )
        else:
            self.jitter, self.blur = RandomBandJitter(), blur
            self.noise = RandomNoise((0.1, 0.1), p=0.6)
            self.grayscale = RandomGrayscale(torch.ones(len(mean)), p=0.2)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Augment normalised views, (B, C, S, S)."""
        values = torch.addcmul(self.mean.to(x), x, self.std.to(x))
        if len(self.mean) == 3:
            augmented: Tensor = self.augment(values)
            return (augmented - self.mean.to(x)) / self.std.to(x)
        x = self.blur((self.jitter(values) - self.mean.to(x)) / self.std.to(x))
        unit = x.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)
        grey: Tensor = self.grayscale(self.noise(x / unit) * unit)
        return grey


class KorniaViews(nn.Module):
    """The two views of kornia's augmentations."""

    def __init__(self, size: int, photometric: nn.Module) -> None:
        """Take the size of the views and what changes the values of the strong one."""
        super().__init__()
        self.geometric = K.AugmentationSequential(
            K.RandomResizedCrop(
                (size, size),
                scale=(0.3, 1.0),
                ratio=(3 / 4, 4 / 3),
                resample=Resample.BILINEAR,
            ),
            K.RandomHorizontalFlip(p=0.5),
            data_keys=[DataKey.INPUT],
        )
        self.photometric = photometric

    @torch.no_grad()
    def forward(self, images: Pair) -> tuple[Pair, Pair]:
        """Draw the views and the matrices that map pixels of the patch to theirs."""
        weak: Tensor = self.geometric(images[0])
        weak_transform: Tensor = self.geometric.transform_matrix
        strong: Tensor = self.geometric(images[1])
        strong_transform: Tensor = self.geometric.transform_matrix
        strong = self.photometric(strong)
        return (weak, strong), (weak_transform, strong_transform)


class NoPhotometric(nn.Module):
    """What leaves the strong view as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the views."""
        return x


def contestants(
    bands: int, size: int, device: torch.device
) -> dict[str, dict[str, Callable[[Tensor], object]]]:
    """Give what is timed, and for each what kornia and what we do with patches."""
    mean, std = torch.full((bands,), 0.4), torch.full((bands,), 0.2)
    photometric: dict[str, nn.Module] = {
        'kornia': KorniaPhotometric(mean, std),
        'cmid': RGBPhotometric(mean, std)
        if bands == 3
        else MultispectralPhotometric(bands, mean, std),
    }
    views: dict[str, type[nn.Module]] = {'kornia': KorniaViews, 'cmid': Views}
    functions: dict[str, dict[str, Callable[[Tensor], object]]] = {
        'both views': {},
        'weak view': {},
        'strong view': {},
        'its values': {},
    }
    for name, change in photometric.items():
        change.to(device)
        both = views[name](size, change).to(device)
        crops = views[name](size, NoPhotometric()).to(device)

        # the other view, of one patch, costs next to nothing
        def weak(x: Tensor, crops: nn.Module = crops) -> object:
            return crops((x, x[:1]))

        def strong(x: Tensor, both: nn.Module = both) -> object:
            return both((x[:1], x))

        def values(x: Tensor, change: nn.Module = change) -> object:
            return change(x[..., :size, :size])

        def pair(x: Tensor, both: nn.Module = both) -> object:
            return both((x, x))

        functions['both views'][name] = pair
        functions['weak view'][name] = weak
        functions['strong view'][name] = strong
        functions['its values'][name] = values
    return functions


def seconds(function: Callable[[Tensor], object], x: Tensor) -> float:
    """Time a function."""
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    function(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def commit() -> str:
    """Name the commit that is measured."""
    command = ['git', 'describe', '--always', '--dirty', '--abbrev=10']
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', type=int, default=224, help='pixels of a view')
    parser.add_argument('--patch-size', type=int, default=224, help='of a patch')
    parser.add_argument('--bands', type=int, nargs='+', default=[3, 13])
    parser.add_argument('--batch-size', type=int, nargs='+', default=[16, 64])
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    print(
        f'{args.size} px views of {args.patch_size} px patches, float32; '
        f'{args.device}, {args.threads} threads on {os.cpu_count()} cores, '
        f'{platform.machine()}; torch {torch.__version__}, kornia '
        f'{kornia.__version__}; OMP_WAIT_POLICY '
        f'{os.environ.get("OMP_WAIT_POLICY", "unset")}; commit {commit()}; '
        f'{args.rounds} rounds in alternation'
    )
    columns = f'{"median/s":>10}{"min/s":>10}{"max/s":>10}{"ratio":>8}'
    print(f'{"":44}{columns}')
    for bands in args.bands:
        functions = contestants(bands, args.size, torch.device(args.device))
        for batch_size in args.batch_size:
            shape = (batch_size, bands, args.patch_size, args.patch_size)
            patches = torch.rand(shape, device=args.device)
            for what, pair in functions.items():
                rates: dict[str, list[float]] = {name: [] for name in pair}
                for round_ in range(args.rounds + 1):
                    for name, function in pair.items():
                        rate = batch_size / seconds(function, patches)
                        if round_:  # the first warms up
                            rates[name].append(rate)
                title = f'{bands} bands, batch {batch_size}, {what}'
                base = statistics.median(rates['kornia'])
                for name, values in rates.items():
                    median = statistics.median(values)
                    print(
                        f'{title:36}{name:8}{median:10.1f}{min(values):10.1f}'
                        f'{max(values):10.1f}{median / base:8.2f}',
                        flush=True,
                    )


if __name__ == '__main__':
    main()
