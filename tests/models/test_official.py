# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The full published checkpoints: strictness, the permutation, and the losses."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from tests.goldens import official_keys
from tests.models import mmcls_swin
from tests.published import make_full_state
from torchgeo_cmid.tasks import CMID
from torchgeo_cmid.transforms import cell_grid, match_cells, random_cell_mask

SWIN = 'swin_base_patch4_window7_224'
SIZE = {'resnet50': 64, SWIN: 224}


def make_state(model: str, seed: int = 0) -> dict[str, Tensor]:
    """Random values under the names, shapes and types of the published state."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (shape, dtype) in official_keys(model).items():
        if dtype == torch.int64:
            state[name] = torch.zeros(shape, dtype=dtype)
        elif name.endswith('running_var') or 'weight_g' in name:
            state[name] = torch.ones(shape)
        else:
            fan_in = max(torch.Size(shape[1:]).numel(), 1)
            state[name] = torch.randn(shape, generator=generator) / fan_in**0.5
    return state


@pytest.fixture(scope='class')
def resnet_state() -> dict[str, Tensor]:
    return make_state('resnet50')


@pytest.fixture(scope='class')
def swin_state() -> dict[str, Tensor]:
    return make_state('swin_b')


@pytest.fixture(scope='class')
def resnet() -> CMID:
    return CMID(model='resnet50', size=64)


@pytest.fixture(scope='class')
def swin(swin_state: dict[str, Tensor]) -> CMID:
    task = CMID(model=SWIN)
    task.load_official_checkpoint({'model': swin_state})
    return task


Pair = tuple[Tensor, Tensor]


def random_step(batch_size: int, cells: int) -> tuple[Pair, Pair, Pair]:
    """Two views of cells x cells cells of 32 px, their masks and grids."""
    size = 32 * cells
    shape = (batch_size, 3, size, size)
    views = (torch.randn(shape), torch.randn(shape))
    masks = (
        random_cell_mask(batch_size, cells, 0.6),
        random_cell_mask(batch_size, cells, 0.6),
    )
    shift = torch.eye(3) + 0.3 * size * torch.rand(batch_size, 3, 3).triu(1)
    unmoved = torch.eye(3).expand(batch_size, 3, 3)
    grids = (
        cell_grid(unmoved, size, (cells, cells)),
        cell_grid(shift, size, (cells, cells)),
    )
    return views, masks, grids


class TestResNet50:
    def test_losses(self, resnet: CMID, resnet_state: dict[str, Tensor]) -> None:
        """A step equals one computed from the published names with torchvision."""
        torch.manual_seed(0)
        resnet.load_official_checkpoint(resnet_state)
        resnet.train()
        step = random_step(batch_size=4, cells=2)
        with torch.no_grad():
            losses = resnet.compute_losses(*step, teacher_temperature=0.05)
            expected = reference_losses(resnet_state, *step, 0.05)
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=0)

    def test_everything_is_taken_over(
        self, resnet: CMID, resnet_state: dict[str, Tensor]
    ) -> None:
        resnet.load_official_checkpoint(resnet_state)
        torch.testing.assert_close(
            resnet.teacher.backbone.state_dict()['layer4.2.conv3.weight'],
            resnet_state['branch_encoder.layer4.2.conv3.weight'],
        )
        torch.testing.assert_close(
            resnet.distillation.center, resnet_state['class_loss.center'].flatten()
        )
        assert torch.equal(resnet.contrastive.queue, resnet_state['queue'])

    @pytest.mark.parametrize('key', ['queue', 'online_encoder.model.bn1.weight'])
    def test_missing(
        self, resnet: CMID, resnet_state: dict[str, Tensor], key: str
    ) -> None:
        state = {k: v for k, v in resnet_state.items() if k != key}
        with pytest.raises(ValueError, match=f'missing: {key}'):
            resnet.load_official_checkpoint(state)

    def test_unexpected(self, resnet: CMID, resnet_state: dict[str, Tensor]) -> None:
        before = resnet.student.backbone.state_dict()['conv1.weight'].clone()
        state = make_state('resnet50', seed=1) | {'stranger': torch.zeros(1)}
        with pytest.raises(ValueError, match='unexpected: stranger'):
            resnet.load_official_checkpoint(state)
        # nothing is half-loaded
        assert torch.equal(resnet.student.backbone.state_dict()['conv1.weight'], before)

    def test_shape(self, resnet: CMID, resnet_state: dict[str, Tensor]) -> None:
        state = resnet_state | {'queue': torch.zeros(256, 100)}
        with pytest.raises(ValueError, match=r'shape \(256, 100\) .* queue'):
            resnet.load_official_checkpoint(state)

    def test_other_backbone(self, resnet: CMID, swin_state: dict[str, Tensor]) -> None:
        with pytest.raises(ValueError, match='unexpected: online_encoder'):
            resnet.load_official_checkpoint(swin_state)


class TestSwinB:
    def test_losses(self) -> None:
        """A step equals one computed from the published names by mmcls' Swin."""
        torch.manual_seed(0)
        state = make_full_state('cmid_swin_b')
        task = CMID(model=SWIN)
        task.load_official_checkpoint(state)
        step = random_step(batch_size=2, cells=7)
        with torch.no_grad():
            losses = task.compute_losses(*step, teacher_temperature=0.05)
            expected = reference_losses(state, *step, 0.05)
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=0)

    def test_every_tensor_finds_its_place(
        self, swin: CMID, swin_state: dict[str, Tensor]
    ) -> None:
        """As many values as the file has, less the index that timm derives."""
        used = sum(
            v.numel() for k, v in swin_state.items() if 'position_index' not in k
        )
        parts = ('student.', 'teacher.', 'contrastive.', 'distillation.center')
        ours = sum(
            v.numel() for k, v in swin.state_dict().items() if k.startswith(parts)
        )
        assert used == ours

    @pytest.mark.parametrize('stage', [0, 1, 2])
    def test_patch_merging(
        self, swin: CMID, swin_state: dict[str, Tensor], stage: int
    ) -> None:
        """What mmcls unfolds, timm concatenates: the features are the same."""
        prefix = f'branch_encoder.stages.{stage}.downsample.'
        channels = 128 * 2**stage
        x = torch.randn(2, 8, 8, channels)
        unfolded = nn.Unfold(2, stride=2)(x.permute(0, 3, 1, 2)).mT  # (2, 16, 4 C)
        weight, bias = (swin_state[f'{prefix}norm.{n}'] for n in ('weight', 'bias'))
        normed = F.layer_norm(unfolded, (4 * channels,), weight, bias)
        expected = normed @ swin_state[f'{prefix}reduction.weight'].T
        ours = swin.teacher.backbone.layers[stage + 1].downsample(x)
        torch.testing.assert_close(ours.flatten(1, 2), expected, rtol=1e-4, atol=1e-4)

    def test_names(self, swin: CMID, swin_state: dict[str, Tensor]) -> None:
        official = 'online_encoder.model.stages.2.blocks.17.ffn.layers.0.0.weight'
        ours = 'layers.2.blocks.17.mlp.fc1.weight'
        assert torch.equal(
            swin.student.backbone.state_dict()[ours], swin_state[official]
        )


class TestFiles:
    @pytest.fixture
    def task(self) -> CMID:
        return CMID(model='resnet18', size=64, queue_size=16)

    def write(self, path: Path, content: Any) -> Path:
        torch.save(content, path)
        return path

    def test_unsafe(
        self, tmp_path: Path, resnet: CMID, resnet_state: dict[str, Tensor]
    ) -> None:
        """A foreign class is refused, the error says how, and then no code runs."""
        content = {'model': resnet_state, 'config': argparse.Namespace(epochs=200)}
        path = self.write(tmp_path / 'full.pth', content)
        with pytest.raises(ValueError, match=r'full\.pth.*weights_only=False'):
            resnet.load_official_checkpoint(path)
        resnet.load_official_checkpoint(path, weights_only=False)
        assert torch.equal(resnet.contrastive.queue, resnet_state['queue'])

    def test_code_is_never_run(self, tmp_path: Path, task: CMID) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / 'exploded',)

        path = self.write(tmp_path / 'bomb.pth', {'model': {'a': Bomb()}})
        with pytest.raises(ValueError, match='no tensors'):
            task.load_official_checkpoint(path, weights_only=False)
        assert not (tmp_path / 'exploded').exists()

    @pytest.mark.parametrize('weights_only', [True, False])
    def test_no_checkpoint(
        self, tmp_path: Path, task: CMID, weights_only: bool
    ) -> None:
        path = tmp_path / 'page.pth'
        path.write_text('<html>404</html>')
        with pytest.raises(
            ValueError, match=r'page\.pth.*(no PyTorch checkpoint|web page)'
        ):
            task.load_official_checkpoint(path, weights_only=weights_only)

    def test_something_else(self, tmp_path: Path, task: CMID) -> None:
        path = self.write(tmp_path / 'list.pth', [1, 2])
        with pytest.raises(ValueError, match='holds no tensors'):
            task.load_official_checkpoint(path)
        path = self.write(tmp_path / 'other.pth', {'epoch': 3})
        with pytest.raises(ValueError, match='no state dict'):
            task.load_official_checkpoint(path)

    def test_byol_has_no_published_state(self, resnet_state: dict[str, Tensor]) -> None:
        task = CMID(model='resnet18', size=64, global_branch='byol')
        with pytest.raises(ValueError, match="global_branch='moco'"):
            task.load_official_checkpoint(resnet_state)


def reference_losses(
    state: dict[str, Tensor],
    views: tuple[Tensor, Tensor],
    masks: tuple[Tensor, Tensor],
    grids: tuple[Tensor, Tensor],
    temperature: float,
) -> dict[str, Tensor]:
    """The losses by the formulas, in the published names.

    On torchvision's ResNet, or on Swin as mmcls defines it.
    """
    swin = 'class_projector.mlp.6.weight' not in state

    def backbone(prefix: str, x: Tensor, stem: Tensor | None = None) -> Tensor:
        own = {
            k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)
        }
        stem = torch.zeros(1, 1, 1, 1) if stem is None else stem
        if swin:
            token = stem.movedim(1, -1)
            return mmcls_swin.forward_features(own, x, lambda tokens: tokens + token)
        model = torchvision.models.resnet50().train()
        model.load_state_dict({k: own.get(k, v) for k, v in model.state_dict().items()})
        x = model.maxpool(model.relu(model.bn1(model.conv1(x)))) + stem
        return model.layer4(model.layer3(model.layer2(model.layer1(x))))

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f'{name}.weight'].squeeze(-1), state[f'{name}.bias'])

    def project(name: str, x: Tensor) -> Tensor:
        hidden = F.relu(linear(f'{name}.layer.0.0', x.mean(dim=(2, 3))))
        return F.normalize(linear(f'{name}.layer.0.3', hidden))

    def prototypes(name: str, x: Tensor) -> Tensor:
        for layer in (0, 2) if swin else (0, 3):
            x = linear(f'{name}.mlp.{layer}', x)
            if swin:  # no batch norm
                x = F.gelu(x)
                continue
            weight, bias = (
                state[f'{name}.mlp.{layer + 1}.{n}'] for n in ('weight', 'bias')
            )
            x = F.gelu(F.batch_norm(x, None, None, weight, bias, training=True))
        x = F.normalize(linear(f'{name}.mlp.{4 if swin else 6}', x))
        v = state[f'{name}.last_layer.weight_v'].squeeze(-1)
        g = state[f'{name}.last_layer.weight_g'].squeeze(-1)
        return F.linear(x, g * v / v.norm(dim=1, keepdim=True))

    student, teacher, spatial, frequency = [], [], [], []
    for x, mask in zip(views, masks, strict=True):
        cells = mask[:, None].float()
        pixels = cells.repeat_interleave(32, 2).repeat_interleave(32, 3)
        mean = x.mean(dim=(2, 3), keepdim=True)
        token = state['online_encoder.mask_token'].view(1, -1, 1, 1)
        stem = token * cells.repeat_interleave(8, 2).repeat_interleave(8, 3)
        masked = x * (1 - pixels) + mean * pixels
        student.append(backbone('online_encoder.model.', masked, stem))
        teacher.append(backbone('branch_encoder.', x))

        decoder = 'mim2org.decoder_pred.0'
        r = F.conv2d(student[-1], state[f'{decoder}.weight'], state[f'{decoder}.bias'])
        r = F.pixel_shuffle(r, 32)
        d = (r - x).abs()
        weighted = (d * (2 * torch.sigmoid(0.2 * d) - 1) * pixels).sum()
        spatial.append(weighted / (pixels.sum() + 1e-5) / 3)
        soft = pixels + 0.001 * (1 - pixels)
        blended = r * soft + (0.5 * r + 0.5 * x) * (1 - soft)
        delta = torch.fft.fft2(blended, norm='ortho').mean(dim=0)
        delta = delta - torch.fft.fft2(x, norm='ortho').mean(dim=0)
        weight = torch.log(1 + delta.abs())
        weight = (weight / weight.max()).clamp(0, 1)
        frequency.append((weight * delta.abs() ** 2).mean())

    contrast = []
    for own, other in ((0, 1), (1, 0)):
        q = project('online_projector', student[own])
        k = project('branch_projector', teacher[other])
        positive = (q * k).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, q @ state['queue']], dim=1) / 0.2
        contrast.append((logits.logsumexp(dim=1) - logits[:, 0]).mean())

    center = state['class_loss.center'].flatten()
    local = []
    for own, other in ((0, 1), (1, 0)):
        rows_own, rows_other = match_cells(grids[own], grids[other], 20)
        image = torch.arange(len(rows_own))[:, None]
        cells_own = student[own].flatten(2).mT[image, rows_own].flatten(0, 1)
        cells_other = teacher[other].flatten(2).mT[image, rows_other].flatten(0, 1)
        z_s = prototypes('class_projector', cells_own)
        z_t = prototypes('branch_class_projector', cells_other)
        p = torch.softmax((z_t - center) / temperature, dim=1)
        local.append(-(p * torch.log_softmax(z_s / 0.1, dim=1)).sum(dim=1).mean())
        center = 0.9 * center + 0.1 * z_t.mean(dim=0)

    losses = {
        'reconstruction': (sum(spatial) + sum(frequency)) / 2,
        'global': sum(contrast) / 2,
        'local': sum(local) / 2,
    }
    return losses | {'loss': sum(losses.values())}
