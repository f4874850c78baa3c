# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The CMID task: contrastive mask image distillation, wired into Lightning."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from ..distributed import GlobalCounts
from ..losses import (
    BYOLLoss,
    FrequencyLoss,
    PrototypeDistillation,
    QueueInfoNCE,
    SpatialLoss,
)
from ..metrics import entropy_share
from ..models.loading import load_strictly, read_start
from ..models.normalization import PUBLISHED, Pixels
from ..models.official import (
    convert_official_checkpoint,
    load_official_state,
    unwrap_state,
)
from ..networks import Student, Teacher
from ..rules import published
from ..transforms import (
    Matches,
    TwoMaskedViews,
    expand_mask,
    fill_with_valid_mean,
    find_matches,
    take_matches,
)
from .pretraining import PretrainingTask
from .ranges import check_loss_weights, check_ranges

Pair = tuple[Tensor, Tensor]


class CMID(PretrainingTask):
    """CMID: Contrastive Mask Image Distillation.

    Self-supervised pre-training of one backbone for global and for local tasks: a
    student sees two masked views of a patch, its exponential moving average, the
    teacher, sees them whole, and three losses are added: reconstruction of the masked
    cells, contrast of the pooled features, and distillation of matching cells.

    A batch holds ``image`` (B, C, H, W) and, where fill pixels are known, ``valid`` (B,
    1, H, W) bool, False where there is no data: such pixels never teach. With two dates
    there are (B, 2 C, H, W) and (B, 2, H, W), and where they lie differently on the
    ground ``frame`` (B, 3, 3), from pixels (x, y, 1) of the second to the first.

    If you use this task in your research, please cite the following paper:

    * https://arxiv.org/abs/2304.09670
    """

    ignore = ('weights', 'augmentations')

    def __init__(
        self,
        *,
        model: str = 'resnet50',
        weights: WeightsEnum | str | bool | None = None,
        in_channels: int = 3,
        size: int = 224,
        mask_patch_size: int = 32,
        mask_ratio: float = 0.6,
        global_branch: Literal['moco', 'byol'] | None = 'moco',
        local_branch: bool = True,
        reconstruction_branch: bool = True,
        loss_weights: Sequence[float] = (1, 1, 1),
        frequency_weight: float = 1.0,
        queue_size: int | None = None,
        temperature: float = 0.2,
        projection_dim: int = 256,
        hidden_dim: int = 2048,
        num_prototypes: int | None = None,
        bottleneck_dim: int = 256,
        local_head_norm: bool | None = None,
        num_matches: int = 20,
        student_temperature: float = 0.1,
        teacher_temperature: float | None = None,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_temperature_epochs: float | None = None,
        sharpness: float | None = None,
        center_momentum: float = 0.9,
        momentum: float | None = None,
        final_momentum: float = 1.0,
        optimizer: str = 'adan',
        lr: float | None = None,
        weight_decay: float = 0.02,
        warmup_epochs: float | None = None,
        min_lr: float = 1e-6,
        augmentations: nn.Module | None = None,
        recompute: bool = True,
        recipe: Literal['scaled', 'published'] = 'scaled',
    ) -> None:
        """Initialize a new CMID instance.

        Args:
            model: Name of the `timm
                <https://huggingface.co/docs/timm/reference/models>`__ model to use; any
                whose last features are a map.
            weights: Initial weights. Either a weight enum, the string representation of
                a weight enum, True for timm's ImageNet weights, False or None for
                random weights, or a file: of a backbone, of a checkpoint of this task
                (its student's backbone), or a full published state, with which heads,
                queue and centre are taken over, too.
            in_channels: Number of bands. An image of twice as many bands is taken for
                two dates of one place, which become the two views.
            size: Height and width of a view in pixels.
            mask_patch_size: Height and width of a cell of the mask in pixels.
            mask_ratio: Share of the cells of a view that is masked.
            global_branch: 'moco' for InfoNCE against a queue, 'byol' for a predictor
                and no queue, None for no global branch.
            local_branch: Whether matching cells are distilled over prototypes.
            reconstruction_branch: Whether masked cells are reconstructed.
            loss_weights: Weights of the reconstruction, global and local loss.
            frequency_weight: Weight of the frequency term in the reconstruction loss.
            queue_size: Number of keys in the queue of the global branch. None: 65,536,
                of which at most the patches of an epoch are in use.
            temperature: Temperature of InfoNCE.
            projection_dim: Length of the global embedding.
            hidden_dim: Length of the hidden layers of the heads.
            num_prototypes: Number of prototypes of the local branch. None: 2,048, of
                which fewer are in use in a run that sees few patches.
            bottleneck_dim: Length of the embedding that is compared with prototypes.
            local_head_norm: Batch norm in the local head. None: if the backbone has it.
            num_matches: Number of pairs of cells that are distilled per patch and
                direction.
            student_temperature: Temperature of the student's assignments.
            teacher_temperature: Temperature of the teacher's after the warm-up. None:
                0.07, or what *sharpness* says.
            warmup_teacher_temperature: Temperature of the teacher's at the start.
            warmup_teacher_temperature_epochs: Epochs of the temperature's warm-up.
                None: 50, at most 30 % of the run.
            sharpness: Spread of the teacher's logits over its temperature, which then
                follows the spread. None: 2 in a run of less than 20,000 steps, else the
                temperature is fixed.
            center_momentum: Momentum of the centre of the teacher's logits.
            momentum: Momentum of the teacher at the start. None: 0.996, and 1 - 9.2 /
                steps in a run of less than 2,300.
            final_momentum: Momentum of the teacher at the end.
            optimizer: Name of the timm optimizer.
            lr: Learning rate after the warm-up. None: 0.00625 sqrt(global batch / 256),
                the authors' rule, from the batch size of the run.
            weight_decay: Weight decay of every trained parameter with more than one
                dimension.
            warmup_epochs: Epochs of the learning rate's warm-up. None: 10, at most a
                tenth of the run.
            min_lr: Learning rate at the end.
            augmentations: Module that draws the views in place of the default one: see
                :class:`~torchgeo_cmid.transforms.TwoMaskedViews`.
            recompute: Compute wide maps anew in the backward pass, which takes less
                memory and gives the same gradients: see
                :mod:`torchgeo_cmid.networks.recompute`.
            recipe: 'scaled': what is None follows from how long the run is, by
                :mod:`torchgeo_cmid.rules`. 'published': it has the published number.

        Raises:
            ValueError: If the model is unknown or gives no map of features, if *size*
                is no multiple of *mask_patch_size*, if no branch is left, if arguments
                contradict each other, or if another is out of its range.
        """
        check_ranges(locals())
        if recipe not in ('scaled', 'published'):
            raise ValueError(f"recipe='{recipe}' must be 'scaled' or 'published'")
        if sharpness is not None and teacher_temperature is not None:
            raise ValueError(
                f'sharpness={sharpness} and teacher_temperature={teacher_temperature} '
                'contradict each other: the first is the spread of the logits over the '
                'second, so give one'
            )
        if size % mask_patch_size:
            raise ValueError(
                f'size={size} must be a multiple of mask_patch_size={mask_patch_size}'
            )
        if global_branch not in ('moco', 'byol', None):
            raise ValueError(
                f"global_branch='{global_branch}' must be 'moco', 'byol' or None"
            )
        if not (global_branch or local_branch or reconstruction_branch):
            raise ValueError(
                'global_branch, local_branch and reconstruction_branch are all off'
            )
        branches = {
            'reconstruction': reconstruction_branch,
            'global': global_branch is not None,
            'local': local_branch,
        }
        check_loss_weights(loss_weights, branches)
        self.weights = weights
        self.pixels: Pixels | None = None
        self._start, full_state = None, None
        if weights and weights is not True:
            self._start, full_state = read_start(weights)
        super().__init__()
        if full_state is not None:
            self.load_official_checkpoint(full_state)
        elif self._start is not None and self._start.pixels is not None:
            self._expect(self._start.pixels)
        self._start = None
        self.views = TwoMaskedViews(
            augmentations,
            in_channels=in_channels,
            size=size,
            map_size=self.student.map_size,
            mask_patch_size=mask_patch_size,
            mask_ratio=mask_ratio,
        )

    def configure_models(self) -> None:
        """Initialize student and teacher."""
        arguments = (
            'model',
            'in_channels',
            'size',
            'global_branch',
            'local_branch',
            'reconstruction_branch',
            'projection_dim',
            'hidden_dim',
            'num_prototypes',
            'bottleneck_dim',
            'local_head_norm',
            'recompute',
        )
        known = published(self.hparams)
        self.student = Student(
            pretrained=self.weights is True, **{name: known[name] for name in arguments}
        )
        if self._start is not None:
            load_strictly(self.student.backbone, self._start, str(self.weights))
        self.teacher = Teacher(self.student)

    def configure_losses(self) -> None:
        """Initialize the losses of the three branches."""
        self.spatial_loss = SpatialLoss()
        self.frequency_loss = FrequencyLoss()
        self.contrastive: QueueInfoNCE | BYOLLoss = BYOLLoss()
        if self.hparams['global_branch'] == 'moco':
            self.contrastive = QueueInfoNCE(
                self.hparams['projection_dim'],
                published(self.hparams)['queue_size'],
                self.hparams['temperature'],
            )
        self.distillation = PrototypeDistillation(
            published(self.hparams)['num_prototypes'],
            self.hparams['student_temperature'],
            self.hparams['center_momentum'],
        )

    def apply_settings(self) -> None:
        """Take what is typed, else what the rules say, else the published number."""
        super().apply_settings()
        if isinstance(self.contrastive, QueueInfoNCE):
            keys, patches = self.settings['queue_size'], self.scale.patches
            if 0 < patches < keys:
                rank_zero_warn(
                    f'queue_size={keys} holds more keys than an epoch has patches '
                    f'({patches}): older keys of the same patch become negatives'
                )
            self.contrastive.use(keys)
        self.distillation.in_use = self.settings['num_prototypes']
        self.distillation.sharpness = self.settings['sharpness']

    @property
    def current_teacher_temperature(self) -> float | Tensor:
        """Temperature T of this epoch, or what follows from the spread of logits."""
        scheduled = super().current_teacher_temperature
        if not self.hparams['local_branch']:
            return scheduled
        return self.distillation.temperature(scheduled)

    # The method, in the order of its description: three losses, teacher

    def compute_losses(
        self,
        views: Pair,
        masks: Pair,
        grids: Pair,
        valid: Pair | None = None,
        *,
        teacher_temperature: float | Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch; in train mode queue and centre are updated.

        Args:
            views: The two views x1 and x2, (B, C, S, S) each.
            masks: The masks of their cells, (B, S/32, S/32) bool each, True = masked.
            grids: The centres of their cells as (y, x) in pixels of the patch,
                (B, h, w, 2) each.
            valid: Their valid pixels, (B, 1, S, S) bool each; others may hold anything.
                None: all are.
            teacher_temperature: Temperature T of the teacher's assignments, where it
                does not follow from *sharpness*.

        Returns:
            The losses, () each: ``reconstruction`` (with its parts ``spatial`` and
            ``frequency``), ``global`` and ``local`` as far as their branch is on, and
            the weighted sum ``loss``. With ``local`` come ``assignment_entropy`` and
            ``mean_assignment_entropy``, the entropy of the teacher's assignments per
            cell and of their mean, as a share of ln K, the ``logit_spread`` s of the
            teacher and its ``sharpness`` s / T.
        """
        size = views[0].shape[-1]
        pixels = [expand_mask(mask, size).to(views[0]) for mask in masks]  # M
        if valid is not None:  # fill pixels leave M and the spectral mean
            views = (
                fill_with_valid_mean(views[0], valid[0]),
                fill_with_valid_mean(views[1], valid[1]),
            )
            pixels = [m * known for m, known in zip(pixels, valid, strict=True)]
        matches = self._match(grids, valid)
        counts = GlobalCounts(
            {'patches': torch.tensor(len(views[0]), device=views[0].device)}
            | {f'masked {i}': m.sum() for i, m in enumerate(pixels)}
            | {f'pairs {i}': match.number for i, match in enumerate(matches)}
            | {'asked to end': self.interruption.share(views[0].device)}
        )
        self.interruption.answers = counts.told('asked to end')
        with torch.no_grad():
            targets = self.teacher(views[0]), self.teacher(views[1])
        maps = self.student(views[0], masks[0]), self.student(views[1], masks[1])

        losses: dict[str, Tensor] = {}
        if self.hparams['reconstruction_branch']:
            losses |= self._reconstruct(maps, views, pixels, valid, counts)
        if self.hparams['global_branch']:
            losses['global'] = self._contrast(maps, targets, counts)
        if self.hparams['local_branch']:
            losses |= self._distill(maps, targets, matches, counts, teacher_temperature)

        branches = ('reconstruction', 'global', 'local')
        weights = zip(branches, self.hparams['loss_weights'], strict=True)
        losses['loss'] = torch.stack(
            [weight * losses[branch] for branch, weight in weights if branch in losses]
        ).sum()
        return losses

    def _match(self, grids: Pair, valid: Pair | None) -> list[Matches]:
        """Pair the cells 1 -> 2 and 2 -> 1, as far as the local branch is on."""
        number: int = self.hparams['num_matches']
        if not self.hparams['local_branch']:
            return []
        return [
            find_matches(grids, number, valid),
            find_matches(grids[::-1], number, None if valid is None else valid[::-1]),
        ]

    def _reconstruct(
        self,
        maps: Pair,
        views: Pair,
        pixels: list[Tensor],
        valid: Pair | None,
        counts: GlobalCounts,
    ) -> dict[str, Tensor]:
        """L_rec: spatial + 1.0 * frequency, averaged over the views."""
        spatial, frequency = [], []
        for i, (features, x, mask) in enumerate(zip(maps, views, pixels, strict=True)):
            r = self.student.decoder(features)  # (B, C, S, S)
            if valid is not None:  # r' is x where there is fill
                r = r.where(valid[i], x)
            spatial.append(self.spatial_loss(r, x, mask, counts.share(f'masked {i}')))
            frequency.append(self.frequency_loss(r, x, mask, counts.share('patches')))
        parts = {
            'spatial': torch.stack(spatial).mean(),
            'frequency': torch.stack(frequency).mean(),
        }
        weight = self.hparams['frequency_weight']
        return {
            'reconstruction': parts['spatial'] + weight * parts['frequency'],
            **parts,
        }

    def _contrast(self, maps: Pair, targets: Pair, counts: GlobalCounts) -> Tensor:
        """L_glob: 1/2 [NCE(q1, k2) + NCE(q2, k1)]; then k2 and k1 enter the queue."""
        queries, keys = [], []
        for features, target in zip(maps, targets, strict=True):
            query = self.student.projector(features.mean(dim=(2, 3)))
            queries.append(F.normalize(self.student.predictor(query), dim=1))
            with torch.no_grad():
                key = self.teacher.projector(target.mean(dim=(2, 3)))
                keys.append(F.normalize(key, dim=1))
        share = counts.share('patches')
        loss: Tensor = 0.5 * (
            self.contrastive(queries[0], keys[1], share)
            + self.contrastive(queries[1], keys[0], share)
        )
        if self.training and isinstance(self.contrastive, QueueInfoNCE):
            self.contrastive.enqueue(keys[1], keys[0], sizes=counts.of_each('patches'))
        return loss

    def _distill(
        self,
        maps: Pair,
        targets: Pair,
        matches: list[Matches],
        counts: GlobalCounts,
        teacher_temperature: float | Tensor,
    ) -> dict[str, Tensor]:
        """L_loc: 1/2 [H(1 -> 2) + H(2 -> 1)], each with its own matching and centre."""
        losses, assignments = [], []
        for own, other in ((0, 1), (1, 0)):
            share = counts.share(f'pairs {own}')
            cells, target_cells = take_matches(
                (maps[own], targets[other]), matches[own]
            )  # (N, D) each
            logits = self.student.prototype_head(cells)  # z_s
            with torch.no_grad():
                target = self.teacher.prototype_head(target_cells)  # z_t
            assignment = self.distillation.assign(target, teacher_temperature, share)
            losses.append(self.distillation(logits, assignment, share))
            assignments.append(assignment)
        spread = self.distillation.spread.clone()  # s
        probabilities = torch.cat(assignments)  # (2 B n, prototypes)
        return {
            'local': torch.stack(losses).mean(),
            'assignment_entropy': entropy_share(probabilities),
            'mean_assignment_entropy': entropy_share(probabilities.mean(dim=0)),
            'logit_spread': spread,
            'sharpness': spread / self.distillation.temperature(teacher_temperature),
        }

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher's parameters towards the student's.

        Args:
            momentum: m in teacher = m * teacher + (1 - m) * student.
        """
        self.teacher.update(self.student, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the embedding of whole patches.

        Args:
            x: Patches, (B, C, S, S).

        Returns:
            Average-pooled last features of the student, (B, D).
        """
        features: Tensor = self.student(x)
        return features.mean(dim=(2, 3))

    def load_official_checkpoint(
        self,
        checkpoint: str | os.PathLike[str] | Mapping[str, Any],
        *,
        weights_only: bool = True,
    ) -> None:
        """Continue from the authors' full pre-training state.

        Backbones, mask token, heads, decoder, queue and centre are all taken over.

        Args:
            checkpoint: Path to the file, or its content, or the value under its key
                ``model``.
            weights_only: Refuse a file that pickles anything but tensors, as the
                published files do. With False foreign classes are replaced by empty
                stand-ins.

        Raises:
            ValueError: If it is no checkpoint, if it is unsafe while *weights_only*, or
                if any tensor is missing, unexpected or of another shape.
        """
        if isinstance(checkpoint, Mapping):
            state = unwrap_state(checkpoint, 'the given checkpoint')
        else:
            state = load_official_state(checkpoint, weights_only)
        self._expect(PUBLISHED)
        parts = ('student.', 'teacher.', 'contrastive.', 'distillation.center')
        reference = {k: v for k, v in self.state_dict().items() if k.startswith(parts)}
        self.load_state_dict(
            convert_official_checkpoint(state, reference), strict=False
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the views, masks and pixels of a checkpoint.

        Args:
            checkpoint: The checkpoint.
        """
        name = 'distillation.spread'  # since version 0.2; 0: it is found anew
        checkpoint['state_dict'].setdefault(name, self.state_dict()[name] * 0)
        super().on_load_checkpoint(checkpoint)


class cmid(CMID):
    """CMID by the name that is typed: ``torchgeo fit --model cmid``."""
