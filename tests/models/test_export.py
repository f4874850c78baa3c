# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""From a checkpoint to a file of a backbone, and from there into stock tasks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torchgeo.models import get_weight
from torchgeo.tasks import ChangeDetection, Classification, SemanticSegmentation

from tests.data.geotiff.data import generate
from tests.published import make_backbone, make_full_state
from tests.trainers import quiet_trainer
from torchgeo_cmid.datamodules import RasterFolderDataModule
from torchgeo_cmid.models import export_backbone
from torchgeo_cmid.models.architectures import ARCHITECTURES, MEAN, STD
from torchgeo_cmid.models.loading import load_strictly
from torchgeo_cmid.tasks import CMID


def small(model: str, **kwargs: Any) -> CMID:
    """A task that trains fast."""
    defaults = {'size': 64, 'hidden_dim': 16, 'num_prototypes': 8, 'queue_size': 4}
    return CMID(model=model, **defaults | kwargs)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run on six bands with our data module."""
    folder = tmp_path_factory.mktemp('run')
    generate(folder / 'scenes', bands=6, size=128)
    datamodule = RasterFolderDataModule(
        str(folder / 'scenes'), patch_size=64, batch_size=4, length=4
    )
    trainer = quiet_trainer(folder, limit_val_batches=0, enable_checkpointing=True)
    trainer.fit(small('resnet50', in_channels=6), datamodule)
    trainer.save_checkpoint(folder / 'last.ckpt')
    return folder / 'last.ckpt'


def student(checkpoint: Path, network: str = 'student') -> dict[str, Tensor]:
    """Read the backbone from a checkpoint by hand."""
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    prefix = f'{network}.backbone.'
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def facts(path: Path) -> dict[str, Any]:
    """Read the metadata of an exported file."""
    with safe_open(path, 'pt') as file:
        metadata = file.metadata()
    assert metadata.pop('format') == 'pt'
    return {name: json.loads(value) for name, value in metadata.items()}


class TestExport:
    @pytest.mark.parametrize('network', ['student', 'teacher'])
    def test_by_plain_timm(
        self, checkpoint: Path, network: Any, tmp_path: Path
    ) -> None:
        output = tmp_path / 'folder' / 'backbone.safetensors'
        export_backbone(checkpoint, output, network=network)
        known = facts(output)
        model = timm.create_model(
            known['model'], num_classes=0, in_chans=known['in_channels']
        )
        model.load_state_dict(load_file(output))
        expected = student(checkpoint, network)
        assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
        content = torch.load(checkpoint, weights_only=True)
        normalization = content['RasterFolderDataModule']['normalization']
        assert known == {
            'model': 'resnet50',
            'in_channels': 6,
            'size': 64,
            'network': network,
            'bands': list(normalization['bands']),
            'mean': pytest.approx(normalization['mean']),
            'std': pytest.approx(normalization['std']),
        }
        assert [path.name for path in output.parent.iterdir()] == [output.name]

    def test_command(self, checkpoint: Path, tmp_path: Path) -> None:
        output = tmp_path / 'backbone.safetensors'
        command = ['-m', 'torchgeo_cmid.export', checkpoint, output]
        command = [sys.executable, *command, '--network=teacher']
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout.startswith(f'wrote {output}\n')
        assert f'--model.weights {output}' in done.stdout.splitlines()[-1]
        assert facts(output)['network'] == 'teacher'

    @pytest.mark.parametrize('model', ['cmid_resnet50', 'cmid_swin_b'])
    def test_published_file(self, model: str, published: Path, tmp_path: Path) -> None:
        output = tmp_path / 'backbone.safetensors'
        export_backbone(model, output)
        known = facts(output)
        assert known['bands'] == ['R', 'G', 'B']
        assert known['unit'] == 255
        assert known['mean'] == pytest.approx([255 * mean for mean in MEAN])
        assert known['std'] == pytest.approx([255 * std for std in STD])
        timm_model = timm.create_model(known['model'], num_classes=0)
        timm_model.load_state_dict(load_file(output))

    def test_full_published_file(self, tmp_path: Path) -> None:
        """Also one that pickles what is no tensor, if the caller trusts it."""
        state = make_full_state('cmid_resnet50')
        path, output = tmp_path / 'full.pth', tmp_path / 'teacher.safetensors'
        torch.save({'model': state, 'args': Path('x')}, path)
        with pytest.raises(ValueError, match=r'full\.pth.*weights_only=False'):
            export_backbone(path, output, network='teacher')
        export_backbone(path, output, network='teacher', weights_only=False)
        stem = load_file(output)['conv1.weight']
        assert torch.equal(stem, state['branch_encoder.conv1.weight'])
        assert facts(output)['network'] == 'teacher'
        assert facts(output)['mean'] == pytest.approx([255 * mean for mean in MEAN])

    @pytest.mark.parametrize('model', ['cmid_resnet50', 'cmid_swin_b'])
    def test_file_of_a_backbone(
        self, model: str, published: Path, tmp_path: Path
    ) -> None:
        """By its tensors alone it could as well have been trained on something else."""
        output = tmp_path / 'backbone.safetensors'
        export_backbone(published / f'{model}_millionaid.pth', output)
        known = facts(output)
        assert known == {'model': ARCHITECTURES[model].timm_name, 'in_channels': 3}
        timm_model = timm.create_model(known['model'], num_classes=0)
        timm_model.load_state_dict(load_file(output))

    def test_plain_timm_file(self, tmp_path: Path) -> None:
        """Regression: a ResNet-18 was said to be a ResNet-50 trained on RGB."""
        state = timm.create_model('resnet18', in_chans=5, num_classes=7).state_dict()
        path, output = tmp_path / 'resnet18.pth', tmp_path / 'out.safetensors'
        torch.save(state, path)
        with pytest.raises(ValueError, match=r'resnet18\.pth.* not tell .*pass model'):
            export_backbone(path, output)
        with pytest.raises(ValueError, match=r"are not those of model='resnet34'"):
            export_backbone(path, output, model='resnet34')
        assert not output.exists()
        export_backbone(path, output, model='resnet18')
        assert facts(output) == {'model': 'resnet18', 'in_channels': 5}
        given = {'mean': [1.0] * 5, 'std': [2.0] * 5, 'unit': 10000.0}
        again = tmp_path / 'again.safetensors'
        export_backbone(output, again, **given)
        assert facts(again) == facts(output) | given

    def test_given_facts(self, published: Path, tmp_path: Path) -> None:
        path = published / 'cmid_resnet50_millionaid.pth'
        output = tmp_path / 'backbone.safetensors'
        given = {'bands': ['IR', 'R', 'G'], 'mean': [0, 0, 0], 'std': [1, 2, 3]}
        export_backbone(path, output, **given)
        assert given.items() <= facts(output).items()
        with pytest.raises(ValueError, match='mean and std go together'):
            export_backbone(path, tmp_path / 'other.safetensors', mean=[0, 0, 0])
        with pytest.raises(ValueError, match=r"bands=\['R'\] must have 3 values"):
            export_backbone(path, tmp_path / 'other.safetensors', bands=['R'])

    def test_nothing_is_overwritten(self, checkpoint: Path, tmp_path: Path) -> None:
        output = tmp_path / 'mine.safetensors'
        output.write_text('mine')
        with pytest.raises(FileExistsError, match=r'mine\.safetensors.* exists'):
            export_backbone(checkpoint, output)
        assert output.read_text() == 'mine'

    def test_other_suffix(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r'must end with \.safetensors'):
            export_backbone(checkpoint, tmp_path / 'backbone.pth')

    def test_something_else(self, tmp_path: Path) -> None:
        torch.save({'weight': torch.zeros(1)}, tmp_path / 'linear.pth')
        with pytest.raises(ValueError, match=r'linear\.pth.*neither'):
            export_backbone(tmp_path / 'linear.pth', tmp_path / 'out.safetensors')


class TestStockTasks:
    """A checkpoint of ours, and an exported file, go into stock tasks."""

    @pytest.fixture(params=['checkpoint', 'exported'])
    def weights(
        self, request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path
    ) -> str:
        if request.param == 'checkpoint':
            return str(checkpoint)
        export_backbone(checkpoint, tmp_path / 'backbone.safetensors')
        return str(tmp_path / 'backbone.safetensors')

    def assert_loaded(self, checkpoint: Path, state: dict[str, Tensor]) -> None:
        expected = student(checkpoint)
        assert expected.keys() <= state.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)

    @pytest.mark.parametrize('model', ['resnet50', 'cmid_resnet50'])
    def test_classification(self, checkpoint: Path, weights: str, model: str) -> None:
        task = Classification(
            model=model, weights=weights, in_channels=6, num_classes=3
        )
        self.assert_loaded(checkpoint, task.model.state_dict())

    @pytest.mark.parametrize('backbone', ['resnet50', 'cmid_resnet50'])
    @pytest.mark.parametrize('model', ['unet', 'upernet'])
    def test_segmentation(
        self, checkpoint: Path, weights: str, model: Any, backbone: str
    ) -> None:
        task = SemanticSegmentation(
            model=model,
            backbone=backbone,
            weights=weights,
            in_channels=6,
            num_classes=3,
        )
        self.assert_loaded(checkpoint, task.model.encoder.state_dict())

    def test_change_detection(self, checkpoint: Path, weights: str) -> None:
        """Two dates of our bands, stacked."""
        stem = student(checkpoint)['conv1.weight']
        task = ChangeDetection(
            model='unet', backbone='cmid_resnet50', weights=weights, in_channels=6
        )
        expected = torch.cat([stem, stem], dim=1) / 2
        assert torch.equal(task.model.encoder.conv1.weight, expected)

    @pytest.mark.parametrize('model', ['cmid_resnet50', 'cmid_swin_b'])
    def test_full_published_file(self, model: str, tmp_path: Path) -> None:
        """Stock tasks take its student's backbone."""
        torch.save({'model': make_full_state(model)}, tmp_path / 'full.pth')
        task = SemanticSegmentation(
            backbone=model, weights=str(tmp_path / 'full.pth'), num_classes=3
        )
        torch.save(make_backbone(model), tmp_path / 'backbone.pth')
        other = SemanticSegmentation(
            backbone=model, weights=str(tmp_path / 'backbone.pth'), num_classes=3
        )
        expected = other.model.encoder.state_dict()
        for name, tensor in task.model.encoder.state_dict().items():
            assert torch.equal(tensor, expected[name])

    def test_torchgeos_own_checkpoints(self, tmp_path: Path) -> None:
        """What TorchGeo reads itself is read as before."""
        task = Classification(model='resnet18', num_classes=3)
        trainer = Trainer(
            accelerator='cpu', logger=False, enable_model_summary=False, max_epochs=0
        )
        trainer.strategy.connect(task)
        trainer.save_checkpoint(tmp_path / 'theirs.ckpt')
        again = Classification(
            model='resnet18', num_classes=3, weights=str(tmp_path / 'theirs.ckpt')
        )
        assert torch.equal(again.model.conv1.weight, task.model.conv1.weight)


class TestBadInput:
    """Stock tasks end with one clear error, and nothing is loaded."""

    def test_wrong_backbone(self, published: Path) -> None:
        for kwargs in (
            {'model': 'cmid_resnet50', 'weights': 'cmid_swin_b'},
            {'model': 'cmid_swin_b', 'weights': 'cmid_resnet50'},
        ):
            with pytest.raises(ValueError, match='does not fit this backbone'):
                Classification(num_classes=3, **kwargs)
            kwargs['backbone'] = kwargs.pop('model')
            with pytest.raises(ValueError, match='does not fit this backbone'):
                SemanticSegmentation(num_classes=3, **kwargs)

    def test_nothing_is_half_loaded(self, published: Path) -> None:
        """A refused file leaves the model as it was."""
        model = timm.create_model('cmid_resnet50', num_classes=0)
        before = {name: v.clone() for name, v in model.state_dict().items()}
        state = get_weight('cmid_resnet50').get_state_dict()
        state['layer4.2.bn3.bias'] = torch.zeros(3)  # the last but its statistics
        with pytest.raises(ValueError, match=r'layer4\.2\.bn3\.bias'):
            load_strictly(model, state, 'file')
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_wrong_stock_backbone(self, published: Path) -> None:
        with pytest.raises(ValueError, match=r'no tensor conv1\.weight.*ResNet'):
            Classification(model='resnet50', weights='cmid_swin_b', num_classes=3)

    @pytest.mark.parametrize('in_channels', [2, 5, 6, 7])
    @pytest.mark.parametrize('model', ['cmid_resnet50', 'cmid_swin_b'])
    def test_band_count(self, model: str, in_channels: int, published: Path) -> None:
        with pytest.raises(ValueError, match=rf'in_channels is {in_channels}.*adapt_b'):
            Classification(
                model=model, weights=model, in_channels=in_channels, num_classes=3
            )

    @pytest.mark.parametrize(
        ('content', 'match'),
        [
            (b'<html>gone</html>', 'web page'),
            (b'', 'only a part of one'),
            (b'PK\x03\x04 and no more', 'only a part of one'),
            (b'GIF89a', 'no PyTorch checkpoint'),
        ],
    )
    @pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
    def test_files(
        self, content: bytes, match: str, suffix: str, tmp_path: Path
    ) -> None:
        path = tmp_path / f'file.{suffix}'
        path.write_bytes(content)
        for call in (
            lambda: Classification(
                model='cmid_resnet50', weights=str(path), num_classes=3
            ),
            lambda: small('resnet18', weights=str(path)),
        ):
            with pytest.raises(ValueError, match=match):
                call()
