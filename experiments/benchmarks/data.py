# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Patches per second of our dataset and sampler next to TorchGeo's on the same files.

It writes scenes of 3 and of 13 bands (uint16, deflate), each as COGs and in strips.
For every number of workers the contestants then take turns at loading epochs of random
patches:

* torchgeo: RasterDataset (its open files cached) and RandomPatchSampler,
* cmid: Scenes and RandomScenePatchSampler, which also tell where pixels are valid,
* cmid, cached: the same with ``cache``, a local folder that all blocks are in,
* with --settings: cmid with one thing changed at a time, to see what matters.

Epochs that open all files and fill the caches come before those that count; the rate of
the first, for which ``cache`` starts empty, stands under "first". No two epochs have
the same patches. All share one size of GDAL's block cache: its default (5 % of the
memory) holds the scenes; with ``--cache 64`` they are to it what an archive is to the
default, and decoding decides. Printed are medians and the ratio of ours to TorchGeo's.

With ``--archive N`` it measures nothing but how long it takes to open an archive of N
small files: without ``cache``, with it for the first time and for the second, and what
another process takes to receive what the first found. For 10,000 files on a local disk
that is 27 s, 29 s, 1.5 s and 0.6 s on two cores. The second start takes less than a
tenth of the first, also with ``min_valid``, for which the first decodes each of them.

Where decoding decides, ``cache`` is what matters: 6 to 16 times TorchGeo's rate (and
the first epoch, which fills it, takes about as long as without), while without it both
wait for the same decoder. Then the layout: tiles before strips, which are decoded in
full width. Where the scenes fit GDAL's cache, open files that are used again matter.

    python experiments/benchmarks/data.py --settings
    python experiments/benchmarks/data.py --settings --cache 64
    python experiments/benchmarks/data.py --archive 10000
"""

import argparse
import os
import pickle
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import torchgeo
from rasterio.transform import Affine
from torch.utils.data import DataLoader, Dataset
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import RandomPatchSampler

from torchgeo_cmid.datasets import Patch, Scenes
from torchgeo_cmid.datasets.batch import stack_patches
from torchgeo_cmid.rasters import raster
from torchgeo_cmid.samplers import GriddedScenePatchSampler, RandomScenePatchSampler

#: How the scenes are written: options of GDAL's drivers.
LAYOUTS: dict[str, dict[str, Any]] = {
    'cog': {'driver': 'COG', 'blocksize': 512, 'overviews': 'none'},
    'striped': {'driver': 'GTiff'},
    'cog 256': {'driver': 'COG', 'blocksize': 256, 'overviews': 'none'},
    'tiled by band': {
        'driver': 'GTiff',
        'tiled': True,
        'blockxsize': 512,
        'blockysize': 512,
        'interleave': 'band',
    },
}


class Reopened(Scenes):
    """Scenes without the reuse of open files."""

    def _load(self, index: Patch, tensor: torch.Tensor) -> dict[str, Any]:
        """Forget the open files and read."""
        raster._open.cache_clear()
        return super()._load(index, tensor)


def write_scenes(
    root: Path, layout: str, bands: int, number: int, pixels: int
) -> list[Path]:
    """Write scenes side by side that hold *pixels* values each.

    Args:
        root: Folder to write to.
        layout: One of ``LAYOUTS``.
        bands: Number of bands.
        number: Number of scenes.
        pixels: Values of a scene, over all bands.

    Returns:
        The files.
    """
    size = round((pixels / bands) ** 0.5) // 512 * 512
    files = []
    for i in range(number):
        path = root / f'{layout.replace(" ", "_")}_{bands}_{i}.tif'
        rng = np.random.default_rng(i)
        image = rng.normal(size=(bands, size, size), scale=0.1)
        image += np.sin(np.mgrid[:size, :size].sum(axis=0) / 50)
        with rasterio.open(
            path,
            'w',
            count=bands,
            height=size,
            width=size,
            dtype='uint16',
            crs='EPSG:32621',
            transform=Affine(10, 0, 700_000 + 10 * i * size, 0, -10, 7_200_000),
            compress='deflate',
            **LAYOUTS[layout],
        ) as file:
            file.write((5000 + 1000 * image).astype(np.uint16))
        files.append(path)
    return files


@dataclass(frozen=True)
class Contestant:
    """Files and how to load patches of them."""

    files: list[Path]
    #: TorchGeo's RasterDataset, or ours.
    dataset: Callable[..., Dataset[Any]] = Scenes
    collate: Callable[[Any], Any] = stack_patches
    #: Arguments of the dataset.
    arguments: dict[str, Any] = field(default_factory=dict)
    #: Settings of GDAL.
    settings: dict[str, str] = field(default_factory=dict)

    def loader(self, args: argparse.Namespace, workers: int) -> DataLoader[Any]:
        """Load batches of 16 random patches in workers that live on.

        Args:
            args: Arguments of the program.
            workers: Number of worker processes.

        Returns:
            The loader of an epoch.
        """
        dataset: Any = self.dataset(self.files, **self.arguments)
        sampler: Iterable[Any]
        if isinstance(dataset, Scenes):
            sampler = RandomScenePatchSampler(
                dataset, size=args.size, length=args.patches
            )
        else:
            sampler = RandomPatchSampler(
                dataset, size=args.size, length=args.patches, generator=0
            )
        return DataLoader(
            dataset,
            batch_size=16,
            sampler=sampler,
            num_workers=workers,
            collate_fn=self.collate,
            persistent_workers=True,
        )


def measure(
    contestants: dict[str, Contestant], args: argparse.Namespace, workers: int
) -> dict[str, list[float]]:
    """Have contestants take turns at loading an epoch.

    Args:
        contestants: What takes part, by name.
        args: Arguments of the program.
        workers: Number of worker processes of each.

    Returns:
        Patches per second of each epoch, the one that fills the caches first.
    """
    loaders = {}
    rates: dict[str, list[float]] = {}
    for name, contestant in contestants.items():
        # workers inherit it when they start, and read it when they first cache a block
        os.environ['GDAL_CACHEMAX'] = str(args.cache)
        os.environ.update(contestant.settings)
        loaders[name] = contestant.loader(args, workers)
        rates[name] = [args.patches / epoch(loaders[name], 0)]
        for number in range(1, args.warm_up):
            epoch(loaders[name], number)
        for key in contestant.settings:
            del os.environ[key]
        if 'cache' in contestant.arguments:  # the blocks that no patch has touched yet
            dataset = loaders[name].dataset
            for patch in GriddedScenePatchSampler(dataset, size=args.size):
                dataset[patch]
    for number in range(args.warm_up, args.warm_up + args.rounds):
        for name, batches in loaders.items():
            rates[name].append(args.patches / epoch(batches, number))
    return rates


def epoch(batches: DataLoader[Any], number: int) -> float:
    """Load an epoch of other patches than those before, in seconds."""
    if isinstance(
        batches.sampler, RandomScenePatchSampler
    ):  # TorchGeo's does by itself
        batches.sampler.set_epoch(number)
    start = time.perf_counter()
    for batch in batches:
        assert batch['image'].dtype == torch.float32
    return time.perf_counter() - start


def measure_archive(folder: Path, number: int) -> None:
    """Measure and print how long it takes to open an archive of small files.

    Args:
        folder: Folder to write to.
        number: Number of files.
    """
    write_archive(folder / 'files', number)
    names = f'{"none/s":>10}{"first/s":>10}{"second/s":>10}{"ratio":>8}{"given/s":>10}'
    print(f'{"":30}{names}')
    for min_valid in (0.0, 0.5):
        cache = str(folder / f'cache {min_valid}')
        seconds = []
        for name in (None, cache, cache):
            start = time.perf_counter()
            scenes = Scenes(folder / 'files', min_valid=min_valid, cache=name)
            seconds.append(time.perf_counter() - start)
        none, first, second = seconds
        start = time.perf_counter()
        assert len(pickle.loads(pickle.dumps(scenes))) == number
        given = time.perf_counter() - start
        title = f'{number} files, min_valid={min_valid}'
        print(
            f'{title:30}{none:10.2f}{first:10.2f}{second:10.2f}{first / second:8.1f}'
            f'{given:10.2f}'
        )


def write_archive(root: Path, number: int) -> None:
    """Write small files side by side, in four zones.

    Args:
        root: Folder to write to.
        number: Number of files.
    """
    root.mkdir()
    image = np.random.default_rng(0).integers(0, 5000, (3, 64, 64)).astype(np.uint16)
    for i in range(number):
        row, col = divmod(i, 100)
        with rasterio.open(
            root / f'{i:06d}.tif',
            'w',
            driver='GTiff',
            count=3,
            height=64,
            width=64,
            dtype='uint16',
            nodata=0,
            crs=f'EPSG:{32621 + i % 4}',
            transform=Affine(10, 0, 3e5 + 700 * col, 0, -10, 7.2e6 - 700 * row),
        ) as file:
            file.write(image)


def show(title: str, rates: dict[str, list[float]], base: str) -> None:
    """Print a row for each contestant."""
    reference = statistics.median(rates[base][1:])
    for name, (first, *values) in rates.items():
        median = statistics.median(values)
        print(
            f'{title:30}{name:22}{first:10.1f}{median:10.1f}{min(values):10.1f}'
            f'{max(values):10.1f}{median / reference:8.2f}',
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', type=int, default=224, help='pixels of a patch')
    parser.add_argument('--bands', type=int, nargs='+', default=[3, 13])
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2, 3, 4])
    parser.add_argument('--patches', type=int, default=320, help='of an epoch')
    parser.add_argument('--warm-up', type=int, default=3, help='epochs before that')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--scenes', type=int, default=4)
    parser.add_argument('--pixels', type=int, default=2**26, help='values of a scene')
    parser.add_argument('--cache', default='5%', help='GDAL_CACHEMAX, in MB or %%')
    parser.add_argument('--settings', action='store_true', help='what matters')
    parser.add_argument('--archive', type=int, help='files, opened and nothing else')
    args = parser.parse_args(arguments)
    if args.archive is not None:
        with tempfile.TemporaryDirectory() as folder:
            measure_archive(Path(folder), args.archive)
        return
    # more workers than cores are asked for on purpose
    warnings.filterwarnings('ignore', 'This DataLoader will create')

    print(
        f'{args.size} px, {args.scenes} scenes of {args.pixels / 2**19:.0f} MiB, '
        f'GDAL cache {args.cache}; {os.cpu_count()} cores, {platform.machine()}; '
        f'torchgeo {torchgeo.__version__}, rasterio {rasterio.__version__}, GDAL '
        f'{rasterio.__gdal_version__}; {args.rounds} rounds in alternation'
    )
    columns = f'{"first/s":>10}{"median/s":>10}{"min/s":>10}{"max/s":>10}{"ratio":>8}'
    print(f'{"":52}{columns}')
    for bands in args.bands:
        with tempfile.TemporaryDirectory() as folder:
            measure_bands(Path(folder), bands, args)


def measure_bands(folder: Path, bands: int, args: argparse.Namespace) -> None:
    """Measure and print all that concerns scenes of a number of bands."""
    files = {
        layout: write_scenes(folder, layout, bands, args.scenes, args.pixels)
        for layout in (LAYOUTS if args.settings else list(LAYOUTS)[:2])
    }
    for layout in list(LAYOUTS)[:2]:
        for workers in args.workers:
            scenes = Contestant(files[layout])
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                contestants = {
                    'torchgeo': replace(
                        scenes, dataset=RasterDataset, collate=stack_samples
                    ),
                    'cmid': scenes,
                    'cmid, cached': replace(scenes, arguments={'cache': cache}),
                }
                rates = measure(contestants, args, workers)
            show(f'{bands} bands, {layout}, {workers} workers', rates, 'torchgeo')
    if not args.settings:
        return
    cog = Contestant(files['cog'])
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        contestants = {
            'cog 512': cog,
            'cog 512, cached': replace(cog, arguments={'cache': cache}),
            'files opened anew': replace(cog, dataset=Reopened),
            'batches copied': replace(cog, collate=stack_samples),
            'cog 256': Contestant(files['cog 256']),
            'tiled by band': Contestant(files['tiled by band']),
            'striped': Contestant(files['striped']),
            'GDAL cache 16 MB': replace(cog, settings={'GDAL_CACHEMAX': '16'}),
            'GDAL cache 1024 MB': replace(cog, settings={'GDAL_CACHEMAX': '1024'}),
            '2 decoding threads': replace(cog, settings={'GDAL_NUM_THREADS': '2'}),
        }
        rates = measure(contestants, args, workers=2)
    show(f'{bands} bands, cmid, 2 workers', rates, 'cog 512')


if __name__ == '__main__':
    main()
