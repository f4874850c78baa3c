# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What a training step of CMID costs beyond what no implementation can avoid.

In one process and in alternation this times

* the floor: two forward and backward passes of the student's and two forward passes of
  the teacher's bare timm backbone, on the same tensors,
* the step: losses, backward, optimizer and teacher, on given views,
* the step with the views: the same, the views drawn by kornia from patches,

and prints medians, their ratios to the floor, and the peak resident memory. The peak is
that of a process that only runs steps: it is measured in a child of its own.

    python experiments/benchmarks/training_step.py --threads 2
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor

from torchgeo_cmid import CMID
from torchgeo_cmid.transforms import default_views


class Bench:
    """A task, its optimizer and one batch."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Set up what the timed functions share."""
        torch.manual_seed(0)
        self.device = torch.device(args.device)
        self.task = CMID(model=args.model, in_channels=args.bands, size=args.size)
        self.task.to(self.device).train()
        self.optimizer = create_optimizer_v2(
            self.task.student, 'adan', lr=1e-4, weight_decay=0.02
        )
        shape = (args.batch_size, args.bands, args.size, args.size)
        self.patches = torch.rand(shape, device=self.device)
        self.task.views.augmentations = default_views(args.size, args.bands, unit=1.0)[
            0
        ].to(self.device)
        self.given = self.task.views({'image': self.patches})

    def _synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def step(self) -> None:
        """A training step on given views."""
        losses = self.task.compute_losses(*self.given, teacher_temperature=0.04)
        losses['loss'].backward()
        self.optimizer.step()
        self.task.update_teacher(0.996)
        self.optimizer.zero_grad()

    def step_with_views(self) -> None:
        """A training step that draws its views."""
        self.given = self.task.views({'image': self.patches})
        self.step()

    def make_floor(self, model: str, bands: int) -> Callable[[], None]:
        """Two student passes with backward and two teacher passes, and nothing else."""
        kwargs = {'in_chans': bands, 'num_classes': 0, 'drop_path_rate': 0.0}
        student = timm.create_model(model, **kwargs).to(self.device).train()
        teacher = timm.create_model(model, **kwargs).to(self.device).train()

        def floor() -> None:
            views: tuple[Tensor, Tensor] = self.given[0]
            with torch.no_grad():
                teacher.forward_features(views[0])
                teacher.forward_features(views[1])
            features = [student.forward_features(view) for view in views]
            student.zero_grad()
            (features[0].mean() + features[1].mean()).backward()

        return floor

    def time(self, function: Callable[[], None]) -> float:
        """Run a function once, in seconds."""
        self._synchronize()
        start = time.perf_counter()
        function()
        self._synchronize()
        return time.perf_counter() - start


def peak_gib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='resnet50')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--bands', type=int, default=3)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--memory-only', action='store_true', help='used by itself')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    bench = Bench(args)
    if args.memory_only:
        for _ in range(3):
            bench.step()
        without_views = peak_gib()
        for _ in range(2):
            bench.step_with_views()
        print(json.dumps([without_views, peak_gib()]))
        return

    command = [sys.executable, __file__, *sys.argv[1:], '--memory-only']
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peaks = json.loads(output.splitlines()[-1])

    floor = bench.make_floor(args.model, args.bands)
    contestants = {
        'floor: backbones alone': floor,
        'step': bench.step,
        'step with views': bench.step_with_views,
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(args.rounds + 2):
        for name, function in contestants.items():
            seconds = bench.time(function)
            if round_ >= 2:  # the first two warm up
                times[name].append(seconds)

    print(
        f'{args.model}, batch {args.batch_size}, {args.size} px, {args.bands} bands, '
        f'{args.threads} threads, {args.device}; torch {torch.__version__}, '
        f'{platform.machine()}; {args.rounds} rounds in alternation'
    )
    columns = f'{"median s":>10}{"min s":>10}{"max s":>10}{"ratio":>8}{"peak GiB":>10}'
    print(f'{"":24}{columns}')
    base = statistics.median(times['floor: backbones alone'])
    memory = {'step': peaks[0], 'step with views': peaks[1]}
    for name, seconds in times.items():
        median = statistics.median(seconds)
        peak = f'{memory[name]:.2f}' if name in memory else ''
        print(
            f'{name:24}{median:10.3f}{min(seconds):10.3f}{max(seconds):10.3f}'
            f'{median / base:8.3f}{peak:>10}'
        )


if __name__ == '__main__':
    main()
