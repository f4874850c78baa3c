# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The published backbones: converted, as timm models and as smp encoders."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchgeo.models import get_model

from tests.models import mmcls_swin
from tests.published import make_backbone
from torchgeo_cmid.models import convert_official_backbone, official
from torchgeo_cmid.models.architectures import MEAN, STD
from torchgeo_cmid.models.transfer import ResNetEncoder, SwinEncoder

SWIN = 'swin_base_patch4_window7_224'


@pytest.fixture(scope='module')
def swin_state() -> dict[str, Tensor]:
    return make_backbone('cmid_swin_b')


@pytest.fixture(scope='module')
def resnet_state() -> dict[str, Tensor]:
    return make_backbone('cmid_resnet50')


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def assert_same_map(actual: Tensor, expected: Tensor) -> None:
    """Compare maps relative to the largest value."""
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < 1e-4, error


class TestConversion:
    """Features equal those of independent definitions of the published layouts."""

    @pytest.fixture(scope='class')
    def images(self) -> Tensor:
        return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    @pytest.fixture(scope='class')
    def expected(self, swin_state: dict[str, Tensor], images: Tensor) -> Tensor:
        return mmcls_swin.forward_features(swin_state, images)

    def test_swin(
        self, swin_state: dict[str, Tensor], images: Tensor, expected: Tensor
    ) -> None:
        model = timm.create_model(SWIN, num_classes=0).eval()
        model.load_state_dict(convert_official_backbone(swin_state))
        features = model.forward_features(images).movedim(-1, 1)  # type: ignore[operator]
        assert_same_map(features, expected)

    def test_swin_without_the_permutation(
        self,
        swin_state: dict[str, Tensor],
        images: Tensor,
        expected: Tensor,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The comparison sees when the permutation is left out."""
        monkeypatch.setattr(
            official, 'from_patch_merging_order', lambda name, tensor: tensor
        )
        model = timm.create_model(SWIN, num_classes=0).eval()
        model.load_state_dict(convert_official_backbone(swin_state))
        features = model.forward_features(images).movedim(-1, 1)  # type: ignore[operator]
        with pytest.raises(AssertionError):
            assert_same_map(features, expected)

    def test_swin_without_index(self, swin_state: dict[str, Tensor]) -> None:
        """Newer files do not hold the index, which timm derives."""
        state = {k: v for k, v in swin_state.items() if not k.endswith('_index')}
        assert len(state) < len(swin_state)
        converted = convert_official_backbone(state)
        assert converted.keys() == convert_official_backbone(swin_state).keys()

    def test_resnet(self, resnet_state: dict[str, Tensor], images: Tensor) -> None:
        model = timm.create_model('resnet50', num_classes=0).eval()
        model.load_state_dict(convert_official_backbone(resnet_state))
        reference = torchvision.models.resnet50().eval()
        reference.load_state_dict(resnet_state, strict=False)
        body = nn.Sequential(*list(reference.children())[:-2])
        features = model.forward_features(images)  # type: ignore[operator]
        assert_same_map(features, body(images))

    @pytest.mark.parametrize('name', ['layer3.5.bn1.running_var', 'conv1.weight'])
    def test_missing(self, resnet_state: dict[str, Tensor], name: str) -> None:
        state = {k: v for k, v in resnet_state.items() if k != name}
        with pytest.raises(ValueError, match=name):
            convert_official_backbone(state)

    def test_unexpected(self, swin_state: dict[str, Tensor]) -> None:
        with pytest.raises(ValueError, match=r'unexpected: head\.weight'):
            convert_official_backbone({**swin_state, 'head.weight': torch.zeros(1)})

    def test_shape(self, swin_state: dict[str, Tensor]) -> None:
        with pytest.raises(ValueError, match=r'does not fit \(1024,\): norm3\.bias'):
            convert_official_backbone({**swin_state, 'norm3.bias': torch.zeros(1)})


class TestModels:
    def test_swin_at_its_size(
        self, published: Path, swin_state: dict[str, Tensor]
    ) -> None:
        """The registered model equals the published layout, its input in 0..1."""
        model = get_model('cmid_swin_b', weights='cmid_swin_b', num_classes=0).eval()
        x = torch.rand(1, 3, 224, 224)
        normalised = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
            3, 1, 1
        )
        features = model.forward_features(x).movedim(-1, 1)  # type: ignore[operator]
        assert_same_map(features, mmcls_swin.forward_features(swin_state, normalised))

    def test_swin_at_twice_its_size(self, swin_state: dict[str, Tensor]) -> None:
        """Windows are shifted in the last stage, too, once it has several."""
        model = timm.create_model('cmid_swin_b', num_classes=0, normalize=False).eval()
        model.load_state_dict(convert_official_backbone(swin_state))
        x = torch.randn(1, 3, 448, 448)
        features = model.forward_features(x).movedim(-1, 1)  # type: ignore[operator]
        assert_same_map(features, mmcls_swin.forward_features(swin_state, x))

    @pytest.mark.parametrize('name', ['cmid_resnet50', 'cmid_swin_b'])
    @pytest.mark.parametrize('size', [32, 96, (64, 160)])
    def test_any_size(self, name: str, size: int | tuple[int, int]) -> None:
        sides = (size, size) if isinstance(size, int) else size
        model = timm.create_model(name, num_classes=5).eval()
        assert model(torch.rand(2, 3, *sides)).shape == (2, 5)
        encoder = smp.encoders.get_encoder(name, weights=None).eval()
        maps = encoder(torch.rand(1, 3, *sides))
        assert [m.shape[1] for m in maps] == encoder.out_channels
        assert [m.shape[2:] for m in maps] == [
            (sides[0] >> i, sides[1] >> i) for i in range(6)
        ]

    def test_encoders_equal_models(
        self, resnet_state: dict[str, Tensor], swin_state: dict[str, Tensor]
    ) -> None:
        """The last map of an encoder is the model's, for Swin before the final norm."""
        x = torch.rand(1, 3, 64, 64)
        state = convert_official_backbone(resnet_state)
        encoder, model = (
            ResNetEncoder().eval(),
            get_model('cmid_resnet50', num_classes=0),
        )
        encoder.load_state_dict(state)
        model.eval().load_state_dict(state)
        assert_same_map(encoder(x)[-1], model.forward_features(x))  # type: ignore[operator]
        state = convert_official_backbone(swin_state)
        swin, model = SwinEncoder().eval(), get_model('cmid_swin_b', num_classes=0)
        swin.load_state_dict(state)
        model.eval().load_state_dict(state)
        last = model.norm(swin(x)[-1].movedim(1, -1))  # type: ignore[operator]
        assert_same_map(last, model.forward_features(x))  # type: ignore[operator]

    def test_features_only_is_normalised(self) -> None:
        """Timm takes the model apart for this, the normalisation stays."""
        torch.manual_seed(0)
        model = timm.create_model('cmid_resnet50', num_classes=0).eval()
        features = timm.create_model('cmid_resnet50', features_only=True).eval()
        features.load_state_dict(model.state_dict())
        x = torch.rand(1, 3, 64, 64)
        assert_same_map(features(x)[-1], model.forward_features(x))  # type: ignore[operator]

    def test_pretrained(self, published: Path, swin_state: dict[str, Tensor]) -> None:
        model = timm.create_model('cmid_swin_b', pretrained=True, num_classes=3)
        expected = swin_state['patch_embed.projection.weight']
        torch.testing.assert_close(
            model.state_dict()['patch_embed.proj.weight'], expected
        )

    def test_dilated(self) -> None:
        maps = ResNetEncoder(output_stride=16)
        maps.make_dilated(16)
        assert maps.eval()(torch.rand(1, 3, 64, 64))[-1].shape[2:] == (4, 4)
        with pytest.raises(ValueError, match='output_stride=16 must be 32'):
            SwinEncoder(output_stride=16)

    @pytest.mark.parametrize('depth', [3, 4, 5])
    @pytest.mark.parametrize('encoder', [ResNetEncoder, SwinEncoder])
    def test_depth(
        self, encoder: type[ResNetEncoder | SwinEncoder], depth: int
    ) -> None:
        model = encoder(depth=depth).eval()
        assert (
            len(model(torch.rand(1, 3, 64, 64))) == depth + 1 == len(model.out_channels)
        )
