# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A run stops at a loss that is not finite, and keeps the batch for a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor


def require_finite(
    trainer: Trainer,
    losses: Mapping[str, Tensor],
    mean: Tensor,
    batch: Mapping[str, Any],
) -> None:
    """Stop all processes if the loss of any is not finite.

    Before the optimizer's step, as no later one would repair what it had broken.

    Args:
        trainer: The trainer.
        losses: The losses of the step, () each, with their sum as ``loss``.
        mean: Mean of the loss over all processes, ().
        batch: The batch; its tensors are saved.

    Raises:
        ValueError: If the loss is not finite here or in another process.
    """
    if torch.isfinite(mean):
        return
    folder = trainer.log_dir or trainer.default_root_dir  # asked for by every process
    step, rank = trainer.global_step, trainer.global_rank
    if torch.isfinite(losses['loss']):
        raise ValueError(f'the loss of another process is not finite at step {step}')

    values = {name: float(value) for name, value in losses.items()}
    report = {name: x.cpu() for name, x in batch.items() if isinstance(x, Tensor)}
    name = f'non_finite_loss_step={step}_rank={rank}'
    try:
        path = _save_new(report | {'losses': values, 'step': step}, Path(folder), name)
        saved = f'the batch is in {path}, to be read with torch.load'
    except OSError as error:
        saved = f'the batch could not be saved in {folder} ({error})'
    image = report['image']
    if 'valid' in report:
        image = image.where(report['valid'], 0)
    if torch.isfinite(image).all():
        cause = 'the images are finite: lower lr, or train with precision bf16 or 32'
    else:
        cause = 'the images hold NaN or infinity: such pixels must be declared no data'
    listed = ', '.join(f'{name}={value:g}' for name, value in values.items())
    raise ValueError(
        f'the loss is not finite at step {step}: {listed}; {cause}; {saved}'
    )


def _save_new(content: dict[str, Any], folder: Path, name: str) -> Path:
    """Save to a file that did not exist, numbered if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    path, number = folder / f'{name}.pt', 0
    while True:
        try:
            with path.open('xb') as file:
                torch.save(content, file)
            return path
        except FileExistsError:
            number += 1
            path = folder / f'{name}_{number}.pt'
