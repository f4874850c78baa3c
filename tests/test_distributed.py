# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Two gloo processes compute what one does, forward and gradient."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from torchgeo_cmid.distributed import (
    GlobalCounts,
    batch_share,
    gather_batch,
    global_mean,
    global_means,
    world_size,
)
from torchgeo_cmid.losses import FrequencyLoss, PrototypeDistillation, QueueInfoNCE
from torchgeo_cmid.metrics import RankMe

SIZE = 2


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, y


def compute(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Everything that is defined over the global batch."""
    torch.manual_seed(0)
    weight = torch.ones(3, 1, 1, dtype=torch.float64, requires_grad=True)
    loss = FrequencyLoss()(x * weight, y, torch.ones(len(x), 1, 8, 8).double())
    loss.backward()
    assert weight.grad is not None
    contrastive = QueueInfoNCE(3, 10)
    contrastive.enqueue(x.mean((2, 3)).float(), y.mean((2, 3)).float())
    distillation = PrototypeDistillation(3)
    distillation.assign(x.mean((2, 3)), 0.04)
    rank_me = RankMe()
    rank_me.update(x.mean((2, 3)))
    return {
        'loss': loss.detach(),
        'grad': global_mean(weight.grad),  # as DistributedDataParallel does
        'queue': contrastive.queue,
        'center': distillation.center,
        'spread': distillation.spread,
        'gathered': gather_batch(x),
        'rank': rank_me.compute(),
    }


def check_uneven(rank: int) -> None:
    """The last batch of an epoch may be shorter on one process."""
    rows = torch.arange(6.0).view(3, 2)
    gathered = gather_batch(rows[: 3 - 2 * rank])
    assert torch.equal(gathered, torch.cat([rows, rows[:1]]))
    rank_me = RankMe()
    rank_me.update(rows[: 3 - 2 * rank])
    whole = torch.linalg.svdvals(gathered)
    expected = torch.special.entr(whole / whole.sum()).sum().exp()
    torch.testing.assert_close(rank_me.compute(), expected)
    share = batch_share(torch.tensor(3.0 - 2 * rank))
    assert share == (1.5, 0.5)[rank]
    assert batch_share(torch.tensor(0.0)) == 0
    # x + (mean - x) would round to another number on each process
    generator = torch.Generator().manual_seed(rank)
    exact = gather_batch(global_mean(torch.randn(1, 1000, generator=generator)))
    assert torch.equal(exact[0], exact[1])
    counts = GlobalCounts({'a': torch.tensor(3 - 2 * rank), 'b': torch.tensor(7)})
    assert counts.share('a') == (1.5, 0.5)[rank]
    assert counts.share('b') == 1
    assert counts.of_each('a') == [3, 1]
    means = global_means({'a': torch.tensor(2.0 * rank), 'b': torch.tensor(3)})
    assert {name: float(value) for name, value in means.items()} == {'a': 1, 'b': 3}


def work(rank: int, folder: str) -> None:
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=SIZE
    )
    assert world_size() == SIZE
    x, y = (tensor.chunk(SIZE)[rank] for tensor in batch())
    torch.save(compute(x, y), f'{folder}/{rank}.pt')
    check_uneven(rank)
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    expected = compute(*batch())
    mp.spawn(work, (str(tmp_path),), nprocs=SIZE)
    for rank in range(SIZE):
        result = torch.load(tmp_path / f'{rank}.pt')
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, msg=f'{name} of {rank}')
