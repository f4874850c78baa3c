# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The published weights in TorchGeo's registry, and how their files are fetched."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchgeo.models import get_model, get_model_weights, get_weight, list_models

from tests.published import make_backbone, make_full_state
from torchgeo_cmid.models import (
    CMIDResNet50_Weights,
    CMIDSwinB_Weights,
    convert_official_backbone,
)

NAMES = {
    'cmid_resnet50': (CMIDResNet50_Weights.MILLIONAID, 'b2e7ad5d3aea4f569e82'),
    'cmid_resnet50_potsdam': (CMIDResNet50_Weights.POTSDAM, 'd12c2d027d2846119855'),
    'cmid_swin_b': (CMIDSwinB_Weights.MILLIONAID, '82a3c7ca7bfc4887aef8'),
    'cmid_swin_b_potsdam': (CMIDSwinB_Weights.POTSDAM, '92d3d42dce07467f9d8e'),
}
RESNET = CMIDResNet50_Weights.MILLIONAID


class TestRegistry:
    @pytest.mark.parametrize('name', NAMES)
    def test_get_weight(self, name: str) -> None:
        weight, file_id = NAMES[name]
        assert get_weight(name) is weight
        assert str(weight) == name
        assert weight.url == f'https://box.nju.edu.cn/f/{file_id}/?dl=1'
        assert weight in get_model_weights(weight.meta['model'])

    @pytest.mark.parametrize('name', NAMES)
    def test_meta(self, name: str) -> None:
        weight, _ = NAMES[name]
        assert weight.meta['model'] in list_models()
        assert weight.meta['in_chans'] == len(weight.meta['bands']) == 3
        potsdam = name.endswith('potsdam')
        assert weight.meta['dataset'] == ('Potsdam' if potsdam else 'MillionAID')
        assert weight.meta['epochs'] == (400 if potsdam else 200)
        assert weight.meta['publication'].endswith('2304.09670')
        assert weight.meta.keys() >= {'repo', 'license', 'ssl_method'}

    def test_transforms(self) -> None:
        mean = torch.tensor([0.33797, 0.3605, 0.3348]).view(3, 1, 1)
        std = torch.tensor([0.1359, 0.1352, 0.1407]).view(3, 1, 1)
        x = torch.rand(3, 8, 8)
        torch.testing.assert_close(RESNET.transforms(x), (x - mean) / std)

    def test_with_torchgeo_alone_imported(self) -> None:
        program = 'import torchgeo.models as m; print(m.get_weight("cmid_swin_b"))'
        result = subprocess.run(
            [sys.executable, '-c', program], capture_output=True, text=True, check=True
        )
        assert result.stdout == 'cmid_swin_b\n'

    @pytest.mark.parametrize(
        ('name', 'near'),
        [('cmid_swinb', 'cmid_swin_b'), ('ResNet50_Weights.FMOW', 'ResNet50_Weights')],
    )
    def test_unknown_name(self, name: str, near: str) -> None:
        with pytest.raises(ValueError, match=f'{name} is not.*did you mean.*{near}'):
            get_weight(name)

    @pytest.mark.parametrize('weights', ['cmid_resnet50', RESNET])
    def test_get_model(self, weights: Any, published: Path) -> None:
        model = get_model('cmid_resnet50', weights=weights, num_classes=2)
        expected = make_backbone('cmid_resnet50')
        state = model.state_dict()
        assert state.keys() - expected.keys() == {'fc.weight', 'fc.bias'}
        assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.fixture(scope='module')
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('file') / 'b2e7ad5d3aea4f569e82'
    torch.save(make_backbone('cmid_resnet50'), path)
    return path


class TestDownload:
    """From a file:// address, in place of the published one."""

    @pytest.fixture
    def host(self, monkeypatch: pytest.MonkeyPatch, resnet_file: Path) -> Path:
        """Let the address be that of a file, and return it."""
        self.point_to(monkeypatch, resnet_file)
        return resnet_file

    def point_to(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        monkeypatch.setattr(type(RESNET), 'url', property(lambda self: path.as_uri()))

    def test_once(self, host: Path, tmp_path: Path) -> None:
        state = RESNET.get_state_dict(model_dir=tmp_path, progress=False)
        expected = make_backbone('cmid_resnet50')
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        digest = hashlib.sha256(host.read_bytes()).hexdigest()
        record = tmp_path / 'cmid_resnet50_millionaid.pth.sha256'
        assert record.read_text() == f'{digest}  cmid_resnet50_millionaid.pth\n'
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == [record.stem, record.name]
        (tmp_path / record.stem).touch()
        before = (tmp_path / record.stem).stat().st_mtime_ns
        RESNET.get_state_dict(model_dir=tmp_path)
        assert (tmp_path / record.stem).stat().st_mtime_ns == before

    def test_progress(
        self, host: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        RESNET.get_state_dict(model_dir=tmp_path, progress=True)
        assert '100%' in capfd.readouterr().err

    def test_changed_file(self, host: Path, tmp_path: Path) -> None:
        RESNET.get_state_dict(model_dir=tmp_path, progress=False)
        path = tmp_path / RESNET.file_name
        torch.save(make_backbone('cmid_resnet50', seed=1), path)
        with pytest.raises(ValueError, match=r'millionaid\.pth.*has changed.*SHA-256'):
            RESNET.get_state_dict(model_dir=tmp_path)

    @pytest.mark.parametrize('share', [0.0, 0.3, 0.99])
    def test_broken_download(
        self, host: Path, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing of it stays, and the next attempt works."""
        cache, content = tmp_path / 'cache', host.read_bytes()
        broken = tmp_path / 'broken'
        broken.write_bytes(content[: int(share * len(content))])
        self.point_to(monkeypatch, broken)
        with pytest.raises(ValueError, match='only a part of one'):
            RESNET.get_state_dict(model_dir=cache, progress=False)
        assert list(cache.iterdir()) == []
        self.point_to(monkeypatch, host)
        assert RESNET.get_state_dict(model_dir=cache, progress=False)

    def test_web_page(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The published host answers so when a link has died."""
        page = tmp_path / 'page'
        page.write_text('\n<!DOCTYPE html><html>No such file</html>')
        self.point_to(monkeypatch, page)
        with pytest.raises(ValueError, match='is a web page, no weights'):
            RESNET.get_state_dict(model_dir=tmp_path / 'cache', progress=False)

    def test_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / 'exploded',)

        torch.save({'model': Bomb()}, tmp_path / 'bomb')
        self.point_to(monkeypatch, tmp_path / 'bomb')
        with pytest.raises(ValueError, match='pickles objects that are no tensors'):
            RESNET.get_state_dict(model_dir=tmp_path / 'cache', progress=False)
        assert not (tmp_path / 'exploded').exists()

    def test_other_backbone(self, host: Path) -> None:
        with pytest.raises(ValueError, match='another backbone than cmid_swin_b'):
            CMIDSwinB_Weights.MILLIONAID.get_state_dict(
                model_dir=host.parent, file_name=host.name
            )

    def test_no_network(self, tmp_path: Path) -> None:
        with pytest.raises(ConnectionError) as error:
            RESNET.get_state_dict(model_dir=tmp_path, progress=False)
        assert RESNET.url in str(error.value)
        assert str(tmp_path / 'cmid_resnet50_millionaid.pth') in str(error.value)
        assert list(tmp_path.iterdir()) == []

    def test_fetched_by_hand(self, resnet_file: Path, tmp_path: Path) -> None:
        """A full file does as well as the backbone's."""
        shutil.copy(resnet_file, tmp_path / RESNET.file_name)
        backbone = RESNET.get_state_dict(model_dir=tmp_path)
        torch.save({'model': make_full_state('cmid_resnet50')}, tmp_path / 'full.pth')
        full = RESNET.get_state_dict(model_dir=tmp_path, file_name='full.pth')
        assert full.keys() == backbone.keys()
        assert convert_official_backbone(full).keys() == backbone.keys()
