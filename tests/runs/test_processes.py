# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Two processes, by Lightning's flags alone, learn what one does."""

import csv
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from tests.data.geotiff.data import write_scene
from tests.tasks.tiny import TINY
from tests.trainers import quiet_trainer
from torchgeo_cmid import distributed
from torchgeo_cmid.runs.processes import (
    has_fused_activations,
    prepare_strategy,
    start_process,
)
from torchgeo_cmid.tasks import CMID
from torchgeo_cmid.transforms import (
    MaskedViews,
    TwoMaskedViews,
    cell_grid,
    random_cell_mask,
    warp_valid,
)

SMALL = TINY | {
    'in_channels': 2,
    'queue_size': 19,  # no multiple of a batch
    'projection_dim': 8,
    'num_matches': 6,
    'warmup_epochs': 1,
}
FLIP = torch.tensor([[-1.0, 0, 63], [0, 1, 0], [0, 0, 1]])


class FixedViews(TwoMaskedViews):
    """Views and masks that follow from the patch alone, not from its batch."""

    def forward(self, batch: Any, dtype: torch.dtype = torch.float32) -> MaskedViews:
        masks = []
        images, valid = self._patches(batch, dtype)
        for image in images[0]:
            with torch.random.fork_rng():
                torch.manual_seed(int(image[0, 0, 0]))
                masks.append(random_cell_mask(2, 4, 0.6))
        first, second = torch.stack(masks, dim=1)
        views = images[0], 1.2 * images[1].flip(3) + 0.1
        eye = torch.eye(3).expand(len(masks), 3, 3).to(images[0])
        flip = FLIP.expand(len(masks), 3, 3).to(images[0])
        grids = cell_grid(eye, 64, self.map_size), cell_grid(flip, 64, self.map_size)
        if valid is not None:
            valid = warp_valid(valid[0], eye, 64), warp_valid(valid[1], flip, 64)
        return MaskedViews(views, (first, second), grids, valid)


#: The messages of ours since the step began.
MESSAGES: list[str] = []


class CountedMessages:
    """torch.distributed, as our own code sees it."""

    def __getattr__(self, name: str) -> Any:
        """Count what sends something."""
        if name.startswith(('all_', 'broadcast', 'reduce', 'gather')):
            MESSAGES.append(name)
        return getattr(dist, name)


class Record(Callback):
    """Save what this process has seen and learnt."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.losses: list[dict[str, Tensor]] = []
        self.seen: list[Tensor] = []
        self.schedules: list[float] = []
        self.gradient: Tensor | None = None
        self.messages: list[int] = []

    def on_train_batch_start(self, *args: Any) -> None:
        MESSAGES.clear()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.messages.append(len(MESSAGES))
        self.seen.append(batch['image'][:, 0, 0, 0])
        metrics = trainer.callback_metrics
        self.losses.append({k: v.clone() for k, v in metrics.items()})

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        self.schedules.append(pl_module.current_momentum)
        self.schedules.append(optimizer.param_groups[0]['lr'])
        if self.gradient is None:
            parameters = pl_module.student.parameters()
            gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
            self.gradient = torch.cat(gradients)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        result = {
            'state': pl_module.state_dict(),
            'losses': self.losses,
            'seen': torch.cat(self.seen),
            'gradient': self.gradient,
            'schedules': self.schedules,
            'messages': self.messages,
            'never sent': trainer.model.parameters_to_ignore  # type: ignore[union-attr]
            if trainer.world_size > 1
            else set(),
            'seed': torch.initial_seed(),
        }
        torch.save(result, Path(trainer.default_root_dir, f'{trainer.global_rank}.pt'))


def samples(number: int, fill: bool) -> list[dict[str, Tensor]]:
    """Patches that bear their number in a corner, the first of a batch with fill."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for i in range(number):
        image = torch.randn(2, 64, 64, generator=generator, dtype=torch.float64)
        image[0, 0, 0] = i
        sample = {'image': image}
        if fill:
            sample['valid'] = torch.ones(1, 64, 64, dtype=torch.bool)
            if i % 4 == 0:
                sample['valid'][:, 3:, 12:] = False
        result.append(sample)
    return result


class Unpadded(DistributedSampler[dict[str, Tensor]]):
    """Repeats no patch: the last batch of the last process is smaller."""

    def __iter__(self) -> Iterator[int]:
        """Take every n-th, as many as there are."""
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


# What two processes train on, two patches a batch each, and how.
CASES: dict[str, dict[str, Any]] = {
    'whole': {'data': samples(12, False), 'task': {}, 'flags': {}},
    'fill': {'data': samples(12, True), 'task': {}, 'flags': {}},
    'padded': {
        'data': samples(11, False),
        'task': {'queue_size': 64},
        'flags': {},
        'unseeded': True,
    },
    'uneven': {
        'data': samples(11, False),
        'task': {},
        'flags': {},
        'sampler': Unpadded,
    },
    'uneven byol': {
        'data': samples(11, True),
        'task': {'global_branch': 'byol', 'model': 'test_resnet'},
        'flags': {'sync_batchnorm': True},
        'sampler': Unpadded,
    },
    'synchronised': {
        'data': samples(12, True),
        'task': {'model': 'test_resnet', 'global_branch': 'byol'},
        'flags': {'sync_batchnorm': True},
    },
}


def train(folder: Path, arguments: dict[str, Any]) -> None:
    """Train as one of the processes that the environment tells Lightning of."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(int(os.environ['LOCAL_RANK']) if arguments.get('unseeded') else 0)
    task = CMID(**(SMALL | {'model': 'test_vit'} | arguments['task']))
    task.views = FixedViews(
        nn.Identity(), in_channels=2, size=64, map_size=task.student.map_size
    )
    flags = {'precision': '64-true', 'max_epochs': 1} | arguments['flags']
    trainer = quiet_trainer(folder, callbacks=[Record()], **flags)
    data = arguments['data']
    kind = arguments.get('sampler', DistributedSampler)
    sampler = kind(data, trainer.world_size, trainer.global_rank, shuffle=False)
    trainer.fit(task, DataLoader(data, arguments['batch_size'], sampler=sampler))


def train_one_of_two(rank: int, port: int, folder: Path) -> None:
    """What torchrun, SLURM or Lightning itself start for each process."""
    torch.set_num_threads(1)
    os.environ |= {
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port),
        'WORLD_SIZE': '2',
        'NODE_RANK': '0',
        'LOCAL_RANK': str(rank),
    }
    distributed.dist = CountedMessages()
    for name, arguments in CASES.items():
        flags = {'strategy': 'ddp', 'devices': 2} | arguments['flags']
        train(folder / name, arguments | {'flags': flags, 'batch_size': 2})


def fit(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Train with one process, and read what it has saved."""
    train(folder, arguments)
    result: dict[str, Any] = torch.load(folder / '0.pt')
    return result


def fit_two(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Train with two processes, started once, and read what they have saved."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    mp.spawn(train_one_of_two, (port, folder), nprocs=2)
    return {
        name: [torch.load(folder / name / f'{rank}.pt') for rank in range(2)]
        for name in CASES
    }


def compare(case: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Losses, gradients, student, teacher, queue and centre, to 1e-5."""
    expected = {'gradient': one['gradient'], **one['state']}
    for rank in two:
        actual = {'gradient': rank['gradient'], **rank['state']}
        for name, value in expected.items():
            close(actual[name], value, f'{case}: {name}')
        for step, losses in enumerate(one['losses']):
            for name in ('spatial', 'frequency', 'global', 'local', 'loss'):
                mean = rank['losses'][step][f'train_{name}']
                close(mean, losses[f'train_{name}'], f'{case}: {name} of step {step}')


def close(actual: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=1e-5, atol=1e-9, msg=lambda text: f'{name}: {text}'
    )


def as_one_process_sees_it(data: list[Any]) -> list[Any]:
    """The order of global batches of 4: two of the first process, then the other's."""
    order = [4 * i + j for i in range(3) for j in (0, 2, 1, 3)]
    return [data[i] for i in order if i < len(data)]


class TestTwoProcesses:
    def test_equal_one(self, tmp_path: Path) -> None:
        """One test, so that the processes are started only once."""
        two = fit_two(tmp_path)
        for case in ('whole', 'fill', 'synchronised', 'uneven', 'uneven byol'):
            data = as_one_process_sees_it(CASES[case]['data'])
            arguments = {'data': data, 'task': CASES[case]['task']}
            one = fit(tmp_path / 'one', arguments | {'batch_size': 4, 'flags': {}})
            compare(case, one, two[case])
            seen = [set(rank['seen'].tolist()) for rank in two[case]]
            assert not seen[0] & seen[1]
            assert seen[0] | seen[1] == set(range(len(data)))
            # Lightning seeds them alike, but they draw other views
            assert two[case][0]['seed'] != two[case][1]['seed']
        # counts, two spectra, keys, two centres, and the losses that are logged
        for case in ('whole', 'fill', 'uneven'):
            for rank in two[case]:
                assert max(rank['messages']) <= 7, rank['messages']
        # every key once: 3 steps of 2 x 4 keys
        assert two['whole'][0]['state']['contrastive.queue_ptr'].item() == 24 % 19
        assert two['uneven'][1]['state']['contrastive.queue_ptr'].item() == 22 % 19
        # the queue is too large to be sent before every step
        assert two['whole'][0]['never sent'] == {'contrastive.queue'}
        # eleven patches: the sampler repeats one, as all processes take a step
        for rank in two['padded']:
            assert len(rank['seen']) == 6
            assert rank['state']['contrastive.queue_ptr'].item() == 24
        # without --seed_everything each process draws another model: the first's is it
        for name, value in two['padded'][0]['state'].items():
            assert torch.equal(two['padded'][1]['state'][name], value), name

    def test_stock_command(self, tmp_path: Path) -> None:
        """Lightning's flags alone; validation and its metrics included."""
        folder = tmp_path / 'scenes'
        folder.mkdir()
        write_scene(folder / 'a.tif', bands=4, size=160, seed=0)
        config = Path(__file__).parents[1] / 'conf' / 'raster_folder.yaml'
        command = [sys.executable, '-m', 'torchgeo', 'fit', '--config', str(config)]
        command += ['--trainer.strategy=ddp', '--trainer.devices=2']
        command += ['--trainer.max_epochs=1', '--model.init_args.model=test_resnet']
        command += [f'--data.init_args.paths={folder}']
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        (metrics,) = tmp_path.rglob('metrics.csv')
        with metrics.open() as file:
            rows = list(csv.DictReader(file))
        assert [row['train_loss'] != '' for row in rows] == [True, False]
        assert float(rows[1]['val_rank_me']) > 1

    def test_rules_are_kept(self, tmp_path: Path) -> None:
        """What one process has decided holds when two go on."""
        folder = tmp_path / 'scenes'
        folder.mkdir()
        write_scene(folder / 'a.tif', bands=4, size=160, seed=0)
        config = Path(__file__).parents[1] / 'conf' / 'raster_folder.yaml'
        command = [sys.executable, '-m', 'torchgeo', 'fit', '--config', str(config)]
        command += ['--model.init_args.model=test_resnet']
        command += [f'--data.init_args.paths={folder}']
        rules = []
        for epochs, more in ((1, []), (2, ['--trainer.strategy=ddp'])):
            command.append(f'--trainer.max_epochs={epochs}')
            command.append(f'--trainer.devices={epochs}')
            run = subprocess.run(
                [*command, *more], cwd=tmp_path, capture_output=True, text=True
            )
            assert run.returncode == 0, run.stderr
            newest = max(
                tmp_path.rglob('*.ckpt'), key=lambda path: path.stat().st_mtime
            )
            rules.append(torch.load(newest, weights_only=True)['rules'])
            command.append(f'--ckpt_path={newest}')
        assert rules[0]
        assert rules[0] == rules[1]


class TestSchedules:
    def test_accumulation_and_bf16(self, tmp_path: Path) -> None:
        """Momentum and learning rate of each step of the optimizer."""
        data = samples(16, False)
        arguments = {'data': data, 'task': {}, 'batch_size': 4}
        epochs = {'max_epochs': 2}
        plain = fit(tmp_path / '1', arguments | {'flags': epochs})['schedules']
        assert len(plain) == 2 * 8
        flags: dict[str, Any] = epochs | {'precision': 'bf16-mixed'}
        half = fit(tmp_path / '2', arguments | {'flags': flags})
        assert half['schedules'] == pytest.approx(plain)
        flags = epochs | {'accumulate_grad_batches': 2}
        accumulated = fit(tmp_path / '3', arguments | {'flags': flags, 'batch_size': 2})
        assert accumulated['schedules'] == pytest.approx(plain)


class TestStrategies:
    def test_sharded(self) -> None:
        with pytest.raises(ValueError, match='FSDPStrategy shards parameters'):
            prepare_strategy(torch.nn.Identity(), FSDPStrategy())

    def test_whole(self) -> None:
        prepare_strategy(torch.nn.Identity(), DDPStrategy())

    def test_lost_activations(self) -> None:
        """Torch's conversion takes timm's fused layers for plain batch norms."""
        model = timm.create_model('test_efficientnet')
        fused = has_fused_activations(model)
        assert fused
        start_process(model, fused, 0)
        synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        with pytest.raises(ValueError, match='leave --trainer'):
            start_process(synced, fused, 0)
