# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Patches per second of our dataset and sampler next to TorchGeo's on the same files.

It writes scenes of 3 and of 13 bands (uint16, deflate), each as COGs and in strips.
For every number of workers the contestants then take turns at loading epochs of random
patches:

* torchgeo: RasterDataset (its open files cached) and RandomPatchSampler,
* cmid: Scenes and RandomScenePatchSampler, which also tell where pixels are valid,
* with --settings: cmid with one thing changed at a time, to see what matters.

An epoch that opens all files and fills the caches comes before those that count. All
share one size of GDAL's block cache: its default (5 % of the memory) holds the scenes;
with ``--cache 64`` they are to it what an archive is to the default, and decoding, the
same for all, decides. Printed are medians and the ratio of ours to TorchGeo's.

    python experiments/benchmarks/data.py --settings
    python experiments/benchmarks/data.py --settings --cache 64
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
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

from torchgeo_cmid.datasets import Patch, Scenes, raster
from torchgeo_cmid.datasets.batch import stack_patches
from torchgeo_cmid.samplers import RandomScenePatchSampler

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


def loader(
    dataset: Dataset[Any],
    sampler: Iterable[Any],
    workers: int,
    collate: Callable[[Any], Any] = stack_patches,
) -> DataLoader[Any]:
    """Load batches of 16 in workers that live on."""
    return DataLoader(
        dataset,
        batch_size=16,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=True,
    )


def ours(files: list[Path], args: argparse.Namespace, workers: int) -> DataLoader[Any]:
    """The package's dataset and sampler."""
    dataset = Scenes(files)
    sampler = RandomScenePatchSampler(dataset, size=args.size, length=args.patches)
    return loader(dataset, sampler, workers)


def theirs(
    files: list[Path], args: argparse.Namespace, workers: int
) -> DataLoader[Any]:
    """TorchGeo's dataset and sampler."""
    dataset = RasterDataset(files)
    sampler = RandomPatchSampler(
        dataset, size=args.size, length=args.patches, generator=0
    )
    return loader(dataset, sampler, workers, stack_samples)


def reopened(
    files: list[Path], args: argparse.Namespace, workers: int
) -> DataLoader[Any]:
    """Ours, every file opened anew for every patch."""
    dataset = Reopened(files)
    sampler = RandomScenePatchSampler(dataset, size=args.size, length=args.patches)
    return loader(dataset, sampler, workers)


def copied(
    files: list[Path], args: argparse.Namespace, workers: int
) -> DataLoader[Any]:
    """Ours, batches copied together as TorchGeo does."""
    dataset = Scenes(files)
    sampler = RandomScenePatchSampler(dataset, size=args.size, length=args.patches)
    return loader(dataset, sampler, workers, stack_samples)


Contestant = Callable[[list[Path], argparse.Namespace, int], DataLoader[Any]]


def measure(
    contestants: dict[str, tuple[Contestant, list[Path], dict[str, str]]],
    args: argparse.Namespace,
    workers: int,
) -> dict[str, list[float]]:
    """Have contestants take turns at loading an epoch.

    Args:
        contestants: For each its loader, its files and its settings of GDAL.
        args: Arguments of the program.
        workers: Number of worker processes of each.

    Returns:
        Patches per second of each epoch that counts.
    """
    loaders = {}
    for name, (make, files, settings) in contestants.items():
        # workers inherit it when they start, and read it when they first cache a block
        os.environ['GDAL_CACHEMAX'] = str(args.cache)
        os.environ.update(settings)
        loaders[name] = make(files, args, workers)
        epoch(loaders[name])  # opens files, fills caches
        for key in settings:
            del os.environ[key]
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, batches in loaders.items():
            seconds = epoch(batches)
            rates[name].append(args.patches / seconds)
    return rates


def epoch(batches: DataLoader[Any]) -> float:
    """Load an epoch, in seconds."""
    start = time.perf_counter()
    for batch in batches:
        assert batch['image'].dtype == torch.float32
    return time.perf_counter() - start


def show(title: str, rates: dict[str, list[float]], base: str) -> None:
    """Print a row for each contestant."""
    reference = statistics.median(rates[base])
    for name, values in rates.items():
        median = statistics.median(values)
        print(
            f'{title:30}{name:22}{median:10.1f}{min(values):10.1f}{max(values):10.1f}'
            f'{median / reference:8.2f}',
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', type=int, default=224, help='pixels of a patch')
    parser.add_argument('--bands', type=int, nargs='+', default=[3, 13])
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2, 3, 4])
    parser.add_argument('--patches', type=int, default=320, help='of an epoch')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--scenes', type=int, default=4)
    parser.add_argument('--pixels', type=int, default=2**26, help='values of a scene')
    parser.add_argument('--cache', default='5%', help='GDAL_CACHEMAX, in MB or %%')
    parser.add_argument('--settings', action='store_true', help='what matters')
    args = parser.parse_args(arguments)

    print(
        f'{args.size} px, {args.scenes} scenes of {args.pixels / 2**19:.0f} MiB, '
        f'GDAL cache {args.cache}; {os.cpu_count()} cores, {platform.machine()}; '
        f'torchgeo {torchgeo.__version__}, rasterio {rasterio.__version__}, GDAL '
        f'{rasterio.__gdal_version__}; {args.rounds} rounds in alternation'
    )
    columns = f'{"median/s":>10}{"min/s":>10}{"max/s":>10}{"ratio":>8}'
    print(f'{"":52}{columns}')
    with tempfile.TemporaryDirectory() as folder:
        for bands in args.bands:
            files = {
                layout: write_scenes(
                    Path(folder), layout, bands, args.scenes, args.pixels
                )
                for layout in (LAYOUTS if args.settings else list(LAYOUTS)[:2])
            }
            for layout in list(LAYOUTS)[:2]:
                for workers in args.workers:
                    rates = measure(
                        {
                            'torchgeo': (theirs, files[layout], {}),
                            'cmid': (ours, files[layout], {}),
                        },
                        args,
                        workers,
                    )
                    title = f'{bands} bands, {layout}, {workers} workers'
                    show(title, rates, 'torchgeo')
            if args.settings:
                cog = files['cog']
                rates = measure(
                    {
                        'cog 512': (ours, cog, {}),
                        'reopened': (reopened, cog, {}),
                        'batches copied': (copied, cog, {}),
                        'cog 256': (ours, files['cog 256'], {}),
                        'tiled by band': (ours, files['tiled by band'], {}),
                        'striped': (ours, files['striped'], {}),
                        'GDAL cache 16 MB': (ours, cog, {'GDAL_CACHEMAX': '16'}),
                        'GDAL cache 1024 MB': (ours, cog, {'GDAL_CACHEMAX': '1024'}),
                        '2 decoding threads': (ours, cog, {'GDAL_NUM_THREADS': '2'}),
                    },
                    args,
                    2,
                )
                show(f'{bands} bands, cmid, 2 workers', rates, 'cog 512')
            for path in Path(folder).iterdir():
                path.unlink()


if __name__ == '__main__':
    main()
