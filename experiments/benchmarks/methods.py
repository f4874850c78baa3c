# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Images per second and peak memory of CMID next to TorchGeo's own SSL tasks.

All have the same backbone, size, batch and images, and take turns: each trains some
steps by Lightning's ``Trainer``, its own views and optimizer included, then the next.
Printed are for each

* images per second: the batch over the median of its steps,
* that as a multiple of CMID's,
* forward-equivalents: the floating point operations of a step, counted by torch, over
  those of the bare backbone's forward pass of the batch (a backward pass is about two),
* peak resident memory of a process that runs this method alone.

    python experiments/benchmarks/methods.py --model resnet18 --size 96 --batch-size 64
    python experiments/benchmarks/methods.py --model vit_small_patch16_224 --size 224

MAE takes part where the model is a ViT.
"""

import argparse
import json
import logging
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchgeo
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchgeo.tasks import BYOL, MAE, MoCo, SimCLR
from torchgeo.tasks.byol import SimCLRAugmentation

from torchgeo_cmid import CMID

#: Keys of those methods that have a queue.
QUEUE = 4096

Build = Callable[[dict[str, Any], int], LightningModule]


def byol(model: dict[str, Any], size: int) -> LightningModule:
    """BYOL, whose views would be of 224 px."""
    task = BYOL(**model)
    task.model.augment = SimCLRAugmentation((size, size))
    return task


METHODS: dict[str, Build] = {
    'cmid': lambda model, size: CMID(**model, size=size),
    'moco v2': lambda model, size: MoCo(
        **model,
        size=size,
        version=2,
        layers=2,
        hidden_dim=2048,
        output_dim=128,
        memory_bank_size=QUEUE,
        lr=0.03,
    ),
    'moco v3': lambda model, size: MoCo(**model, size=size, version=3, lr=0.03),
    'simclr': lambda model, size: SimCLR(
        **model, size=size, memory_bank_size=QUEUE, lr=0.03
    ),
    'byol': byol,
    'mae': lambda model, size: MAE(**model, size=size),
}


class Images(Dataset[dict[str, Tensor]]):
    """The same images for all: noise in 0..1."""

    def __init__(self, number: int, bands: int, size: int) -> None:
        """Draw them once."""
        random = torch.Generator().manual_seed(0)
        self.images = torch.rand((number, bands, size, size), generator=random)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """An image, (C, S, S)."""
        return {'image': self.images[index]}


class Stopwatch(Callback):
    """Seconds of each step, from its batch on the device to the optimizer's step."""

    def __init__(self) -> None:
        """Start with none."""
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Start to count."""
        _wait()
        self.start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Keep what it took."""
        _wait()
        self.seconds.append(time.perf_counter() - self.start)


def _wait() -> None:
    """Wait until a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def train(task: LightningModule, steps: int, args: argparse.Namespace) -> list[float]:
    """Train some steps.

    Args:
        task: The task; it goes on with the weights that it has.
        steps: Number of steps.
        args: Size and number of images, and the device.

    Returns:
        Seconds of each step.
    """
    watch = Stopwatch()
    trainer = Trainer(
        accelerator=args.device,
        devices=1,
        max_epochs=1,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        precision=args.precision,
    )
    images = Images(args.batch_size * steps, args.bands, args.size)
    trainer.fit(task, DataLoader(images, args.batch_size))
    return watch.seconds


def count(function: Callable[[], object]) -> int:
    """Count floating point operations.

    Args:
        function: What is run once.

    Returns:
        Their number.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='resnet18')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--bands', type=int, default=3)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--device', choices=['cpu', 'gpu'], default='cpu')
    parser.add_argument('--precision', default='32-true')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=3, help='of a round')
    parser.add_argument('--alone', choices=[*METHODS], help='used by itself')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter('ignore')
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)

    model = {'model': args.model, 'in_channels': args.bands}
    if args.alone:
        train(METHODS[args.alone](model, args.size), args.steps, args)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if args.device == 'gpu':
            peak = torch.cuda.max_memory_allocated() / 2**30
        print(json.dumps(peak))
        return

    names = [name for name in METHODS if name != 'mae' or args.model.startswith('vit')]
    peaks = {}
    for name in names:  # first, as a process begins with the peak of its parent
        command = [sys.executable, __file__, *sys.argv[1:], '--alone', name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[name] = float(done.stdout.splitlines()[-1])

    arguments = {'in_chans': args.bands, 'num_classes': 0}
    if args.model.startswith('vit'):
        arguments['img_size'] = args.size
    backbone = timm.create_model(args.model, **arguments)
    batch = torch.rand(args.batch_size, args.bands, args.size, args.size)
    forward = count(lambda: backbone(batch))
    tasks = {name: METHODS[name](model, args.size) for name in names}
    equivalents = {
        name: count(lambda task=task: train(task, 1, args)) / forward
        for name, task in tasks.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name, task in tasks.items():
            seconds[name] += train(task, args.steps, args)[1:]  # the first warms up

    print(
        f'{args.model}, batch {args.batch_size}, {args.size} px, {args.bands} bands, '
        f'{args.threads} threads, {args.device}, {args.precision}; torch '
        f'{torch.__version__}, torchgeo {torchgeo.__version__}, {platform.machine()}; '
        f'{args.rounds} rounds of {args.steps} steps in alternation'
    )
    print(f'{"":10}{"images/s":>10}{"of cmid":>10}{"forwards":>10}{"peak GiB":>10}')
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    for name, median in medians.items():
        print(
            f'{name:10}{args.batch_size / median:10.2f}'
            f'{medians["cmid"] / median:10.3f}{equivalents[name]:10.2f}'
            f'{peaks[name]:10.2f}'
        )


if __name__ == '__main__':
    main()
