# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The rows of the study: what is trained, and the learning rates it may have.

Each has ResNet-18, 96 px, the same steps, images and batch. A rival has TorchGeo's own
optimizer and views; its queue is no longer than the part it is trained on, as CMID's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchgeo.tasks import BYOL, MoCo, SimCLR
from torchgeo.tasks.byol import SimCLRAugmentation

from torchgeo_cmid import CMID
from torchgeo_cmid.transforms import default_views

SIZE = 96
MODEL: dict[str, Any] = {'model': 'resnet18', 'in_channels': 3}
QUEUE = 5000

#: Of MoCo v2 in both of its rows.
MOCO: dict[str, Any] = {
    **MODEL,
    'version': 2,
    'layers': 2,
    'hidden_dim': 2048,
    'output_dim': 128,
    'memory_bank_size': QUEUE,
    'size': SIZE,
}


class Row(NamedTuple):
    """What is trained, from a learning rate, and the rates to choose from."""

    build: Callable[[float], LightningModule]
    rates: tuple[float, ...]


def cmid(**arguments: Any) -> Row:
    """CMID with some arguments; the middle rate is its own default.

    Args:
        **arguments: Arguments of the task.

    Returns:
        The row.
    """
    return Row(
        lambda lr: CMID(**MODEL, size=SIZE, lr=lr, **arguments),
        (1e-3, 0.00625 / 2, 1e-2),
    )


def branches(*names: str) -> Row:
    """CMID with some of its branches.

    Args:
        *names: 'reconstruction', 'global', 'local'.

    Returns:
        The row.
    """
    return cmid(
        reconstruction_branch='reconstruction' in names,
        global_branch='moco' if 'global' in names else None,
        local_branch='local' in names,
    )


def moco(lr: float) -> LightningModule:
    """MoCo v2 of TorchGeo.

    Args:
        lr: Learning rate.

    Returns:
        The task.
    """
    return MoCo(**MOCO, lr=lr, weight_decay=1e-4, temperature=0.07, moco_momentum=0.999)


class MoCoWithOurs(MoCo):
    """MoCo v2 of TorchGeo with AdamW, a cosine and CMID's views."""

    def configure_optimizers(self) -> Any:
        """AdamW, and a cosine over the run.

        Returns:
            Optimizer and scheduler.
        """
        optimizer = AdamW(self.parameters(), self.hparams['lr'], weight_decay=0.02)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = CosineAnnealingLR(optimizer, steps)
        return {
            'optimizer': optimizer,
            'lr_scheduler': {'scheduler': scheduler, 'interval': 'step'},
        }


class View(torch.nn.Module):
    """One of CMID's two views, as a module of images."""

    def __init__(self, strong: bool) -> None:
        """Initialize a new View instance.

        Args:
            strong: The second, whose values are changed too.
        """
        super().__init__()
        self.views = default_views(SIZE, 3, unit=1.0)[0]
        self.strong = strong

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Draw the view.

        Args:
            images: Images, (B, 3, H, W).

        Returns:
            Views, (B, 3, S, S).
        """
        drawn: torch.Tensor = self.views((images, images))[0][int(self.strong)]
        return drawn


def moco_with_ours(lr: float) -> LightningModule:
    """MoCo v2 with AdamW, a cosine, CMID's views and its momentum.

    Args:
        lr: Learning rate.

    Returns:
        The task.
    """
    return MoCoWithOurs(
        **MOCO,
        lr=lr,
        temperature=0.2,
        moco_momentum=0.99,
        augmentation1=View(strong=False),
        augmentation2=View(strong=True),
    )


def simclr(lr: float) -> LightningModule:
    """SimCLR v2 of TorchGeo.

    Args:
        lr: Learning rate.

    Returns:
        The task.
    """
    return SimCLR(
        **MODEL, version=2, layers=3, lr=lr, memory_bank_size=QUEUE, size=SIZE
    )


def byol(lr: float) -> LightningModule:
    """BYOL of TorchGeo, whose views would be of 224 px.

    Args:
        lr: Learning rate.

    Returns:
        The task.
    """
    task = BYOL(**MODEL, lr=lr)
    task.model.augment = SimCLRAugmentation((SIZE, SIZE))
    return task


#: Row -> what is trained. Image statistics and random weights are not.
ROWS: dict[str, Row | None] = {
    'statistics': None,
    'random': None,
    'cmid': cmid(),
    'moco': Row(moco, (0.0075, 0.03, 0.12)),
    'simclr': Row(simclr, (0.075, 0.3, 1.2)),
    'cmid_published': cmid(recipe='published'),
    'global': branches('global'),
    'local': branches('local'),
    'reconstruction': branches('reconstruction'),
    'byol': Row(byol, (3e-4, 1e-3, 3e-3)),
    'global_local': branches('global', 'local'),
    'reconstruction_global': branches('reconstruction', 'global'),
    'reconstruction_local': branches('reconstruction', 'local'),
    'moco_with_ours': Row(moco_with_ours, (3e-4, 1e-3, 3e-3)),
}

#: CMID by other rules than its defaults, at its learning rate. They are judged on the
#: part to select by alone: the part that is scored chooses nothing.
VARIANTS: dict[str, Row] = {
    'cmid_momentum_0.98': cmid(momentum=0.98),
    'cmid_momentum_0.99': cmid(momentum=0.99),
    'cmid_momentum_0.996': cmid(momentum=0.996),
    'cmid_temperature_0.07': cmid(teacher_temperature=0.07),
    'cmid_sharpness_1.5': cmid(sharpness=1.5),
    'cmid_sharpness_3': cmid(sharpness=3.0),
    'cmid_prototypes_256': cmid(num_prototypes=256),
    'cmid_prototypes_2048': cmid(num_prototypes=2048),
    'cmid_center_momentum_0.5': cmid(center_momentum=0.5),
    'cmid_mask_ratio_0.4': cmid(mask_ratio=0.4),
    'cmid_loss_weights_1_2_1': cmid(loss_weights=(1, 2, 1)),
    'cmid_loss_weights_1_1_2': cmid(loss_weights=(1, 1, 2)),
}
