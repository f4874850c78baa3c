# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Train and judge one row of the study with one seed, and keep the figures as JSON.

    python experiments/aid/run.py cmid --root AID --rates      # 3 x 200 steps, seed 0
    python experiments/aid/run.py cmid --root AID --seed 1     # the run that is scored

The learning rate of a run is that of the three whose short run gave the best 5-NN
accuracy on the part to select by. A result that lies there is not computed again.
"""

import argparse
import json
import platform
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torchgeo
from lightning.pytorch import LightningModule, Trainer, seed_everything
from rows import MODEL, ROWS, SIZE, VARIANTS
from scenes import AID, PARTS, AIDDataModule, split
from torch import Tensor, nn
from torch.nn import functional as F

from torchgeo_cmid.evaluation import (
    Features,
    accuracies,
    correspondence_accuracy,
    effective_rank,
    euclidean_knn,
    evaluate_classification,
    image_statistics,
)
from torchgeo_cmid.models.find_backbone import find_backbone, find_teacher
from torchgeo_cmid.transforms import cell_grid, default_views

RESULTS = Path(__file__).parent / 'results'
SHORT = 200


@torch.no_grad()
def describe(
    backbone: nn.Module | None, images: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Features of images.

    Args:
        backbone: The backbone in eval mode. None: the images' own statistics.
        images: Images in 0..1, (N, 3, S, S).

    Returns:
        Pooled features, (N, D), and maps, (N, D, h, w).
    """
    if backbone is None:
        return image_statistics(images), None
    maps: Tensor = torch.cat(
        [backbone.forward_features(part) for part in images.split(500)]  # type: ignore[operator]
    )
    return maps.mean(dim=(2, 3)), maps


def load(dataset: AID, part: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Read a part as it is judged: whole images, at the size of the views.

    Args:
        dataset: The images.
        part: 'train', 'select' or 'score'.
        device: Where to.

    Returns:
        Images in 0..1, (N, 3, S, S), and classes, (N,).
    """
    numbers = split(len(dataset))[part]
    images = torch.from_numpy(dataset.images[sorted(numbers)]).to(device) / 255
    images = F.interpolate(images, (SIZE, SIZE), mode='bilinear', antialias=True)
    return images, dataset.labels[sorted(numbers)]


def judge(
    backbone: nn.Module | None, dataset: AID, part: str, quick: bool
) -> dict[str, float]:
    """All figures of a backbone, on one part.

    Args:
        backbone: The backbone. None: the images' own statistics.
        dataset: The images.
        part: The part that is judged; the memory is the part to train on.
        quick: 5-NN only.

    Returns:
        The figures.
    """
    device = torch.device('cpu')
    if backbone is not None:
        backbone.eval()
        device = next(backbone.parameters()).device

    def features_of(name: str) -> Features:
        images, labels = load(dataset, name, device)
        return Features(describe(backbone, images)[0].cpu(), labels)

    memory, queries = features_of('train'), features_of(part)
    if quick:
        classes = euclidean_knn(memory, queries.x)
        return {'knn5': float(accuracies(classes, queries.y)[0])}
    figures = evaluate_classification(memory, queries, features_of('select'))
    figures['effective_rank'] = float(effective_rank(queries.x))
    if backbone is not None:
        figures['correspondence'] = correspond(backbone, dataset, part, device)
    return figures


def correspond(
    backbone: nn.Module, dataset: AID, part: str, device: torch.device
) -> float:
    """Share of cells whose nearest neighbour in another view shows the same ground.

    Args:
        backbone: The backbone in eval mode.
        dataset: The images.
        part: The part that is judged.
        device: The device of the backbone.

    Returns:
        The share; the views are two weak ones, the same for every backbone.
    """
    numbers = sorted(split(len(dataset))[part])
    patches = torch.from_numpy(dataset.images[numbers]).to(device) / 255
    torch.manual_seed(0)
    weak = default_views(SIZE, 3, unit=1.0)[0]
    weak.photometric = nn.Identity()
    views, transforms = weak((patches, patches))[:2]
    maps = [describe(backbone, view)[1] for view in views]
    assert maps[0] is not None
    assert maps[1] is not None
    cells = maps[0].shape[2], maps[0].shape[3]
    grids = [cell_grid(each, SIZE, cells).to(device) for each in transforms]
    return float(correspondence_accuracy((maps[0], maps[1]), (grids[0], grids[1])))


def train(task: LightningModule, steps: int, args: argparse.Namespace) -> float:
    """Train a task.

    Args:
        task: The task.
        steps: Number of optimizer steps.
        args: Where, and on what.

    Returns:
        Seconds.
    """
    trainer = Trainer(
        accelerator=args.device,
        devices=1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        precision=args.precision,
    )
    start = time.perf_counter()
    trainer.fit(task, AIDDataModule(64, root=args.root, folder=args.folder))
    return time.perf_counter() - start


def run(
    row: str, seed: int, steps: int, lr: float | None, part: str, args: Any
) -> dict[str, Any]:
    """Train and judge.

    Args:
        row: Name of the row.
        seed: Seed of weights, views and order.
        steps: Number of optimizer steps.
        lr: Learning rate.
        part: Part that is judged.
        args: Where, and on what.

    Returns:
        What is kept.
    """
    seed_everything(seed, verbose=False)
    dataset = AID(args.root, args.folder)
    device = 'cuda' if args.device == 'gpu' else args.device
    seconds, logged, teacher = 0.0, {}, None
    backbone: nn.Module | None = None
    trained = VARIANTS.get(row) or ROWS[row]
    if row == 'random':
        name, bands = MODEL['model'], MODEL['in_channels']
        backbone = timm.create_model(name, in_chans=bands, num_classes=0).to(device)
    elif trained is not None:
        assert lr is not None
        task = trained.build(lr)
        seconds = train(task, steps, args)
        metrics = task.trainer.callback_metrics
        logged = {name: float(value) for name, value in metrics.items()}
        logged |= {f'rule_{k}': v for k, v in getattr(task, 'rules', {}).items()}
        backbone = find_backbone(task).to(device)
        teacher = find_teacher(task)
    quick = part == 'select' and steps == SHORT
    figures = judge(backbone, dataset, part, quick)
    if teacher is not None and not quick:
        figures['teacher_knn5'] = judge(teacher.to(device), dataset, part, True)['knn5']
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == 'cuda':
        peak = torch.cuda.max_memory_allocated()
    return {
        'row': row,
        'seed': seed,
        'part': part,
        'steps': steps,
        'lr': lr,
        'precision': args.precision,
        'figures': figures,
        'logged': logged,
        'seconds': seconds,
        'seconds_per_image': seconds / (steps * 64) if seconds else None,
        'peak_bytes': peak,
        'device': torch.cuda.get_device_name() if device == 'cuda' else _processor(),
        'commit': args.commit or _commit(),
        'versions': {
            'python': platform.python_version(),
            'torch': torch.__version__,
            'torchgeo': torchgeo.__version__,
            'timm': timm.__version__,
        },
    }


def _processor() -> str:
    """What a run without a GPU is made on."""
    return f'{platform.machine()}, {torch.get_num_threads()} threads'


def _commit() -> str:
    """The commit of the working tree, marked if it was changed since."""
    command = ['git', 'describe', '--always', '--dirty', '--abbrev=12']
    folder = Path(__file__).parent
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write a result whole.

    Args:
        path: Where to.
        result: What is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix('.tmp')
    unfinished.write_text(json.dumps(result, indent=1) + '\n')
    unfinished.replace(path)
    print(path, result['figures'], flush=True)


def rate_file(row: str, lr: float) -> Path:
    """Where the short run of a rate is kept.

    Args:
        row: Name of the row.
        lr: Learning rate.

    Returns:
        The file.
    """
    return RESULTS / 'rates' / f'{row}-{lr:g}.json'


def chosen_rate(row: str) -> float | None:
    """The learning rate of the best short run.

    Args:
        row: Name of the row.

    Returns:
        The rate; None for what is not trained.

    Raises:
        FileNotFoundError: If a short run has not been made.
    """
    row = 'cmid' if row in VARIANTS else row
    trained = ROWS[row]
    if trained is None:
        return None
    results = {lr: rate_file(row, lr) for lr in trained.rates}
    for path in results.values():
        if not path.exists():
            raise FileNotFoundError(
                f'{path}: run first python experiments/aid/run.py {row} --rates'
            )
    figures = {
        lr: json.loads(path.read_text())['figures']['knn5']
        for lr, path in results.items()
    }
    return max(figures, key=lambda lr: figures[lr])


def main() -> None:
    """Make the runs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('row', choices=[*ROWS, *VARIANTS])
    parser.add_argument('--root', required=True, help='folder of class folders')
    parser.add_argument('--folder', default='build/aid', help='of decoded pixels')
    parser.add_argument('--rates', action='store_true', help='choose the rate')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--steps', type=int, default=1500)
    parser.add_argument('--part', choices=list(PARTS), default='score')
    parser.add_argument('--device', choices=['cpu', 'gpu'], default='cpu')
    parser.add_argument('--precision', default='32-true')
    parser.add_argument('--commit', help='where there is no git')
    args = parser.parse_args()
    torch.set_float32_matmul_precision('high')
    if args.row in VARIANTS and (args.rates or args.part != 'select'):
        parser.error(f'{args.row} is judged with --part select, at the rate of cmid')
    if args.rates:
        trained = ROWS[args.row]
        for lr in trained.rates if trained else ():
            path = rate_file(args.row, lr)
            if not path.exists():
                keep(path, run(args.row, 0, SHORT, lr, 'select', args))
        return
    path = RESULTS / args.part / f'{args.row}-{args.seed}.json'
    if not path.exists():
        lr = chosen_rate(args.row)
        keep(path, run(args.row, args.seed, args.steps, lr, args.part, args))


if __name__ == '__main__':
    main()
